package io.palisade.plugin.testing;

/** A plugin failed a call. The proxy would do what its {@code on_failure} says: deny, unless told otherwise. */
public final class CallFailedException extends RuntimeException {

  private static final long serialVersionUID = 1;

  /** The name of a gRPC status code. */
  private final String code;

  CallFailedException(String code, String message, Throwable cause) {
    super(message, cause);
    this.code = code;
  }

  /**
   * How it failed.
   *
   * @return the name of a gRPC status code: {@code "INTERNAL"} if the plugin's own code threw, {@code
   *     "DEADLINE_EXCEEDED"} if it took too long, ...
   */
  public String code() {
    return code;
  }
}
