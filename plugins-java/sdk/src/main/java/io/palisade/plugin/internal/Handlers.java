package io.palisade.plugin.internal;

import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;
import java.util.logging.Level;
import java.util.logging.Logger;

/**
 * What the failure of a plugin's own code looks like, in the log and to the host. An author's exception may throw when
 * it is read, and so may the handlers of an author's log, or there is no memory left for a stack trace. None of that
 * gets out of here: what is still to be done for the call would not be done.
 */
final class Handlers {

  /**
   * In characters, of up to 9 bytes each. It goes in a trailer, and hosts take 16 KiB of headers and trailers: more
   * would fail the call as a lost one, much more break the connection and all other calls on it.
   */
  private static final int LONGEST_TEXT = 500;

  private Handlers() {}

  /** INTERNAL, so that the host fails closed. */
  static StatusRuntimeException failure(String what, Throwable cause) {
    String text = what + ": " + text(cause);
    return Status.INTERNAL
        .withDescription(text.substring(0, Math.min(text.length(), LONGEST_TEXT)))
        .asRuntimeException();
  }

  /** Logs what was thrown; at least its class, if it can't be read. Does not throw. */
  static void log(Logger logger, Level level, String what, Throwable thrown) {
    try {
      logger.log(level, what, thrown);
    } catch (Throwable e) {
      log(logger, level, what + ": " + thrown.getClass().getName() + ", which can't be logged");
    }
  }

  /** Logs a line. Does not throw. */
  static void log(Logger logger, Level level, String line) {
    try {
      logger.log(level, line);
    } catch (Throwable e) {
      // Nobody is left to be told.
    }
  }

  /** What an exception says; its class, if it can't say it. */
  static String text(Throwable thrown) {
    try {
      return String.valueOf(thrown.toString());
    } catch (Throwable e) {
      return thrown.getClass().getName();
    }
  }

  /** The exception that a stage of a {@link java.util.concurrent.CompletionStage} failed with. */
  static Throwable unwrap(Throwable thrown) {
    boolean wrapped = thrown instanceof CompletionException || thrown instanceof ExecutionException;
    return wrapped && thrown.getCause() != null ? thrown.getCause() : thrown;
  }
}
