package io.palisade.samples;

import io.palisade.plugin.Certificate;
import io.palisade.plugin.CertificateRequest;
import io.palisade.plugin.Config;
import io.palisade.plugin.Plugin;
import java.io.IOException;
import java.nio.file.Path;

/**
 * Serves the certificate in {@code cert.pem} and {@code key.pem} of a directory, and its successor soon after those
 * files were replaced.
 *
 * <pre>
 * config: { dir: /etc/palisade/tls }
 * config: { dir: /mnt/tls, allow_open_keys: true }    # key.pem may be a file that everyone can read
 * </pre>
 */
public final class CertLoader {

  private CertLoader() {}

  static Plugin plugin() {
    return Plugin.named("cert-loader")
        .version("0.1.0")
        .configure(
            config -> {
              config.path("dir");
              allowOpenKeys(config);
            })
        .certificates(CertLoader::load);
  }

  private static Certificate load(CertificateRequest request, Config config) throws IOException {
    Path dir = config.path("dir");
    return Certificate.read(dir.resolve("cert.pem"), dir.resolve("key.pem"), allowOpenKeys(config));
  }

  private static boolean allowOpenKeys(Config config) {
    return config.bool("allow_open_keys", false);
  }

  /**
   * Runs the plugin; palisade starts it.
   *
   * @param args none
   */
  public static void main(String[] args) {
    plugin().serve();
  }
}
