package io.palisade.plugin;

import java.util.Objects;

/**
 * Why certificates are loaded.
 *
 * @param reason what made the SDK call the loader
 */
public record CertificateRequest(Reason reason) {

  /**
   * Makes a request.
   *
   * @param reason what made the SDK call the loader
   */
  public CertificateRequest {
    Objects.requireNonNull(reason, "reason");
  }

  /** What made the SDK call the loader. */
  public enum Reason {
    /** The proxy has given the plugin a configuration. */
    CONFIGURED,
    /** The refresh interval has passed. */
    REFRESH,
    /** The plugin called {@link Plugin#reloadCertificates()}. */
    RELOAD
  }
}
