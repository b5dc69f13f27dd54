package io.palisade.plugin.internal;

import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;

/** What the failure of a plugin's own code looks like to the host. */
final class Handlers {

  private Handlers() {}

  /** INTERNAL, so that the host fails closed. */
  static StatusRuntimeException failure(String what, Throwable cause) {
    return Status.INTERNAL.withDescription(what + ": " + cause).withCause(cause).asRuntimeException();
  }

  /** The exception that a stage of a {@link java.util.concurrent.CompletionStage} failed with. */
  static Throwable unwrap(Throwable thrown) {
    boolean wrapped = thrown instanceof CompletionException || thrown instanceof ExecutionException;
    return wrapped && thrown.getCause() != null ? thrown.getCause() : thrown;
  }
}
