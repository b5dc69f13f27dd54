package io.palisade.plugin.internal;

import io.grpc.Status;
import io.palisade.plugin.Config;

/** The configuration in force, shared by the services of one instance. */
final class Configuration {

  private volatile InForce inForce;

  /** A configuration, and what the host calls it. */
  record InForce(Config config, String hash) {}

  void set(Config config, String hash) {
    inForce = new InForce(config, hash);
  }

  /**
   * The configuration for one call.
   *
   * @param expected the hash of the one that the host means; empty: whichever it is
   * @throws io.grpc.StatusRuntimeException FAILED_PRECONDITION before the first one, and when the host believes that
   *     another is in force
   */
  InForce forCall(String expected) {
    InForce now = inForce;
    if (now == null) {
      throw Status.FAILED_PRECONDITION
          .withDescription("the plugin has not been configured")
          .asRuntimeException();
    }
    if (!expected.isEmpty() && !expected.equals(now.hash)) {
      throw Status.FAILED_PRECONDITION
          .withDescription(
              "the plugin runs with configuration " + now.hash + ", the host expects " + expected)
          .asRuntimeException();
    }
    return now;
  }
}
