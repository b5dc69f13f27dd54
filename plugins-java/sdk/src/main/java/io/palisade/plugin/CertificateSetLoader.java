package io.palisade.plugin;

import java.util.List;

/** Loads all certificates that a plugin has. Called from one thread. */
@FunctionalInterface
public interface CertificateSetLoader {

  /**
   * Loads the certificates as they are now. Only what differs from the result before is sent to the proxy.
   *
   * @param request why the certificates are loaded
   * @param config the configuration in force
   * @return every certificate, each with a {@linkplain Certificate#named name} of its own; one that is missing is
   *     withdrawn from the proxy. {@code null} and two of one name count as failures
   * @throws Exception if they can't be loaded; logged, and the proxy keeps the last ones that could
   */
  List<Certificate> load(CertificateRequest request, Config config) throws Exception;
}
