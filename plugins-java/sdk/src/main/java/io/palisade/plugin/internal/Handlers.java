package io.palisade.plugin.internal;

import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;

/** What the failure of a plugin's own code looks like to the host. */
final class Handlers {

  /**
   * In characters, of up to 9 bytes each. It goes in a trailer, and hosts take 16 KiB of headers and trailers: more
   * would fail the call as a lost one, much more break the connection and all other calls on it.
   */
  private static final int LONGEST_TEXT = 500;

  private Handlers() {}

  /** INTERNAL, so that the host fails closed. */
  static StatusRuntimeException failure(String what, Throwable cause) {
    String text = what + ": " + cause;
    return Status.INTERNAL
        .withDescription(text.substring(0, Math.min(text.length(), LONGEST_TEXT)))
        .asRuntimeException();
  }

  /** The exception that a stage of a {@link java.util.concurrent.CompletionStage} failed with. */
  static Throwable unwrap(Throwable thrown) {
    boolean wrapped = thrown instanceof CompletionException || thrown instanceof ExecutionException;
    return wrapped && thrown.getCause() != null ? thrown.getCause() : thrown;
  }
}
