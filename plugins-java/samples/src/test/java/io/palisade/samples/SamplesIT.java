package io.palisade.samples;

import static io.palisade.plugin.Decision.allow;
import static io.palisade.plugin.Decision.deny;
import static org.junit.jupiter.api.Assertions.assertEquals;

import io.palisade.plugin.Certificate;
import io.palisade.plugin.Config;
import io.palisade.plugin.ConfigException;
import io.palisade.plugin.internal.HostSide;
import io.palisade.plugin.testing.RequestBuilder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The samples, as the jars that people run. */
class SamplesIT {

  @TempDir private Path dir;

  private static Path pem(String name) {
    return RunningPlugin.target().resolve("test-classes/pem/" + name + ".pem");
  }

  private static Certificate pair(String name) throws Exception {
    return Certificate.read(pem(name + ".cert"), pem(name + ".key"), true);
  }

  private static void replace(Path file, Path by) throws Exception {
    Path complete = Files.copy(by, Path.of(file + ".new"));
    Files.setPosixFilePermissions(complete, PosixFilePermissions.fromString("rw-------"));
    Files.move(complete, file, StandardCopyOption.ATOMIC_MOVE);
  }

  @Test
  void header_auth_lets_one_value_pass() throws Exception {
    try (RunningPlugin plugin = RunningPlugin.jar(dir, "header-auth.jar")) {
      HostSide host = plugin.configured(dir, Map.of());
      assertEquals(deny(403, "forbidden"), host.check(RequestBuilder.get("/").build()));
      assertEquals(
          deny(403, "forbidden"),
          host.check(RequestBuilder.get("/").header("user", "guest").build()));
      assertEquals(allow(), host.check(RequestBuilder.get("/").header("user", "admin").build()));
      host.configure(Config.of(Map.of("header", "X-Team", "value", "core")));
      assertEquals(allow(), host.check(RequestBuilder.get("/").header("x-team", "core").build()));
      assertEquals(
          List.of(new ConfigException.Problem("value", "expected a string, found the number 1")),
          host.configure(Config.of(Map.of("value", 1))));
    }
  }

  @Test
  void cert_loader_follows_its_files() throws Exception {
    Path certificates = Files.createDirectory(dir.resolve("tls"));
    try (RunningPlugin plugin = RunningPlugin.jar(dir, "cert-loader.jar")) {
      HostSide host = plugin.connect(dir);
      assertEquals(
          List.of(new ConfigException.Problem("dir", "expected a file name, found nothing")),
          host.configure(Config.of(Map.of())));
      host.configure(Config.of(Map.of("dir", certificates.toString())));
      BlockingQueue<Map<String, Certificate>> held = new LinkedBlockingQueue<>();
      host.watchCertificates(held::add);
      plugin.awaitStderr("certificates can't be loaded; there are none yet");
      replace(certificates.resolve("cert.pem"), pem("one.cert"));
      replace(certificates.resolve("key.pem"), pem("one.key"));
      assertEquals(Map.of("default", pair("one")), held.poll(60, TimeUnit.SECONDS));
      replace(certificates.resolve("key.pem"), pem("two.key"));
      replace(certificates.resolve("cert.pem"), pem("two.cert"));
      assertEquals(Map.of("default", pair("two")), held.poll(60, TimeUnit.SECONDS));
    }
  }
}
