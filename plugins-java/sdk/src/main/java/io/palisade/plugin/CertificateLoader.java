package io.palisade.plugin;

/** Loads the one certificate that a plugin has. Called from one thread. */
@FunctionalInterface
public interface CertificateLoader {

  /**
   * Loads the certificate as it is now. Equal results in a row are not sent to the proxy again.
   *
   * @param request why the certificate is loaded
   * @param config the configuration in force
   * @return the certificate; {@code null} counts as a failure
   * @throws Exception if it can't be loaded; logged, and the proxy keeps the last one that could
   */
  Certificate load(CertificateRequest request, Config config) throws Exception;
}
