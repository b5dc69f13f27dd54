package io.palisade.plugin;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.palisade.plugin.testing.PluginTester;
import java.io.IOException;
import java.net.URISyntaxException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.attribute.PosixFilePermissions;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;
import java.util.logging.Handler;
import java.util.logging.Level;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class CertificateTest {

  @TempDir private Path dir;

  static Path pem(String name) {
    try {
      return Path.of(CertificateTest.class.getResource("/pem/" + name + ".pem").toURI());
    } catch (URISyntaxException e) {
      throw new AssertionError(e);
    }
  }

  private void install(String file, String from) throws IOException {
    Path complete = Files.copy(pem(from), dir.resolve(file + ".new"));
    Files.setPosixFilePermissions(complete, PosixFilePermissions.fromString("rw-------"));
    Files.move(complete, dir.resolve(file), StandardCopyOption.ATOMIC_MOVE);
  }

  private Plugin loader() {
    return Plugin.named("test")
        .refreshEvery(Duration.ofMillis(5))
        .certificates(
            (request, config) -> Certificate.read(dir.resolve("cert.pem"), dir.resolve("key.pem")));
  }

  @ParameterizedTest
  @CsvSource({
    "one.cert,two.key",
    "one.cert,rsa.key",
    "rsa.cert,one.key",
    "rsa.cert,one.sec1.key",
    "ed25519.cert,one.key"
  })
  void a_key_of_another_certificate_is_refused(String chain, String key) {
    IOException thrown =
        assertThrows(IOException.class, () -> Certificate.read(pem(chain), pem(key), true));
    assertTrue(
        thrown.getMessage().endsWith("the key does not belong to the certificate"),
        thrown.getMessage());
  }

  @ParameterizedTest
  @CsvSource({
    "one.cert,one.key",
    "one.cert,one.sec1.key",
    "rsa.cert,rsa.key",
    "rsa.cert,rsa.pkcs1.key",
    "ed25519.cert,ed25519.key"
  })
  void every_form_of_key_is_read(String chain, String key) throws IOException {
    assertEquals("default", Certificate.read(pem(chain), pem(key), true).name());
  }

  @Test
  void files_that_are_something_else_are_refused() {
    assertThrows(IOException.class, () -> Certificate.read(pem("one.key"), pem("one.key"), true));
    assertThrows(IOException.class, () -> Certificate.read(pem("one.cert"), pem("one.cert"), true));
    assertThrows(IOException.class, () -> Certificate.read(dir.resolve("no"), pem("one.key"), true));
    byte[] nothing = {};
    assertThrows(IllegalArgumentException.class, () -> Certificate.of(nothing, nothing));
  }

  @Test
  void text_does_not_show_the_key() throws IOException {
    Certificate certificate = Certificate.read(pem("one.cert"), pem("one.key"), true);
    assertEquals("Certificate[default, []]", certificate.toString());
  }

  @Test
  void a_watch_waits_for_the_first_good_load() throws Exception {
    AtomicReference<Certificate> good = new AtomicReference<>();
    CountDownLatch failed = new CountDownLatch(3);
    Plugin plugin =
        Plugin.named("test")
            .refreshEvery(Duration.ofMillis(5))
            .certificates(
                (request, config) -> {
                  if (good.get() == null) {
                    failed.countDown();
                    throw new IOException("vault is sealed");
                  }
                  return good.get();
                });
    try (CapturedLog log = new CapturedLog();
        PluginTester tester = PluginTester.of(plugin)) {
      assertTrue(failed.await(30, TimeUnit.SECONDS));
      good.set(Certificate.read(pem("one.cert"), pem("one.key"), true));
      assertEquals(List.of(good.get()), tester.certificates());
      assertEquals(1, log.count("certificates can't be loaded; there are none yet"), "logged once");
    }
  }

  @Test
  void replaced_files_reach_the_host_and_broken_ones_do_not() throws Exception {
    install("cert.pem", "one.cert");
    install("key.pem", "one.key");
    try (CapturedLog log = new CapturedLog();
        PluginTester tester = PluginTester.of(loader())) {
      Certificate one = Certificate.read(pem("one.cert"), pem("one.key"), true);
      Certificate two = Certificate.read(pem("two.cert"), pem("two.key"), true);
      assertEquals(List.of(one), tester.certificates());
      // Between the two the pair does not match; the host keeps what it has.
      install("key.pem", "two.key");
      log.await("certificates can't be loaded; those from before stay");
      assertEquals(List.of(one), tester.certificates());
      install("cert.pem", "two.cert");
      assertEquals(
          List.of(two), tester.awaitCertificates(certificates -> !certificates.contains(one)));
      Files.delete(dir.resolve("cert.pem"));
      log.await("certificates can't be loaded; those from before stay");
      assertEquals(List.of(two), tester.certificates());
    }
  }

  @ParameterizedTest
  @CsvSource({"rw----r--", "rw-----w-", "rw-r--r--", "rw-rw-rw-"})
  void a_key_that_is_open_to_everyone_is_refused(String mode) throws IOException {
    install("cert.pem", "one.cert");
    install("key.pem", "one.key");
    Path chain = dir.resolve("cert.pem");
    Path key = dir.resolve("key.pem");
    Files.setPosixFilePermissions(key, PosixFilePermissions.fromString(mode));
    IOException refused = assertThrows(IOException.class, () -> Certificate.read(chain, key));
    assertTrue(refused.getMessage().contains("(mode " + mode + ")"), refused.getMessage());
    assertTrue(refused.getMessage().endsWith("try: chmod o-rwx " + key), refused.getMessage());
    assertEquals("default", Certificate.read(chain, key, true).name());
  }

  @ParameterizedTest
  @CsvSource({"r--------", "rw-------", "r--r-----", "rw-r-----"})
  void a_key_for_its_owner_and_group_is_read(String mode) throws IOException {
    install("cert.pem", "one.cert");
    install("key.pem", "one.key");
    Path key = dir.resolve("key.pem");
    Files.setPosixFilePermissions(key, PosixFilePermissions.fromString(mode));
    assertEquals("default", Certificate.read(dir.resolve("cert.pem"), key).name());
  }

  /** As Kubernetes lays a volume out. */
  @Test
  void links_count_as_what_they_lead_to() throws IOException {
    Path held = Files.createDirectory(dir.resolve("..2026_11_21"));
    for (String name : List.of("cert", "key")) {
      Files.copy(pem("one." + name), held.resolve(name + ".pem"));
      Files.createSymbolicLink(dir.resolve(name + ".pem"), Path.of("..data", name + ".pem"));
    }
    Files.createSymbolicLink(dir.resolve("..data"), held.getFileName());
    Path chain = dir.resolve("cert.pem");
    Path key = dir.resolve("key.pem");
    Files.setPosixFilePermissions(held.resolve("key.pem"), PosixFilePermissions.fromString("r--r-----"));
    assertEquals("default", Certificate.read(chain, key).name());
    Files.setPosixFilePermissions(held.resolve("key.pem"), PosixFilePermissions.fromString("r--r--r--"));
    assertThrows(IOException.class, () -> Certificate.read(chain, key));
  }

  @Test
  void a_reload_does_not_wait_for_the_interval() throws Exception {
    AtomicReference<Certificate> current =
        new AtomicReference<>(Certificate.read(pem("one.cert"), pem("one.key"), true));
    AtomicReference<CertificateRequest.Reason> reason = new AtomicReference<>();
    Plugin plugin =
        Plugin.named("test")
            .refreshEvery(Duration.ofDays(1))
            .certificates(
                (request, config) -> {
                  reason.set(request.reason());
                  return current.get();
                });
    plugin.reloadCertificates(); // Nothing runs yet.
    try (PluginTester tester = PluginTester.of(plugin)) {
      assertEquals(List.of(current.get()), tester.certificates());
      assertEquals(CertificateRequest.Reason.CONFIGURED, reason.get());
      Certificate two = Certificate.read(pem("two.cert"), pem("two.key"), true);
      current.set(two);
      plugin.reloadCertificates();
      assertEquals(List.of(two), tester.awaitCertificates(List.of(two)::equals));
      assertEquals(CertificateRequest.Reason.RELOAD, reason.get());
    }
  }

  @Test
  void a_new_configuration_loads_at_once() throws Exception {
    Plugin plugin =
        Plugin.named("test")
            .refreshEvery(Duration.ofDays(1))
            .certificates(
                (request, config) ->
                    Certificate.read(pem(config.string("cert")), pem(config.string("key")), true)
                        .named(config.string("cert")));
    try (PluginTester tester =
        PluginTester.of(plugin, Map.of("cert", "one.cert", "key", "one.key"))) {
      assertEquals("one.cert", tester.certificates().get(0).name());
      tester.configure(Map.of("cert", "two.cert", "key", "two.key"));
      List<Certificate> after =
          tester.awaitCertificates(held -> !held.isEmpty() && held.get(0).name().equals("two.cert"));
      assertEquals(1, after.size(), "what is gone is removed");
    }
  }

  @Test
  void two_certificates_of_one_name_are_a_failure() throws Exception {
    Certificate one = Certificate.read(pem("one.cert"), pem("one.key"), true);
    Certificate two = Certificate.read(pem("two.cert"), pem("two.key"), true);
    AtomicInteger calls = new AtomicInteger();
    Plugin plugin =
        Plugin.named("test")
            .refreshEvery(Duration.ofMillis(5))
            .certificateSet(
                (request, config) ->
                    calls.getAndIncrement() == 0
                        ? List.of(one, two)
                        : List.of(one, two.named("two").serverNames("*.two.test")));
    try (CapturedLog log = new CapturedLog();
        PluginTester tester = PluginTester.of(plugin)) {
      List<Certificate> certificates = tester.certificates();
      assertEquals(1, log.count("certificates can't be loaded; there are none yet"));
      assertEquals(List.of("default", "two"), certificates.stream().map(Certificate::name).toList());
      assertEquals(List.of("*.two.test"), certificates.get(1).serverNames());
      assertFalse(certificates.get(0).equals(certificates.get(1)));
    }
  }

  /** What the SDK logs. */
  private static final class CapturedLog extends Handler implements AutoCloseable {
    private final Logger logger = Logger.getLogger("io.palisade.plugin");
    private final List<String> messages = new ArrayList<>();
    private int awaited;

    CapturedLog() {
      logger.addHandler(this);
    }

    @Override
    public synchronized void publish(LogRecord record) {
      if (record.getLevel().intValue() >= Level.WARNING.intValue()) {
        messages.add(record.getMessage());
        notifyAll();
      }
    }

    /** Waits for a message behind those that were awaited before. */
    synchronized void await(String message) throws InterruptedException {
      long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(30);
      while (!messages.subList(awaited, messages.size()).contains(message)) {
        assertTrue(System.nanoTime() < deadline, () -> "only these were logged: " + messages);
        wait(100);
      }
      awaited += messages.subList(awaited, messages.size()).indexOf(message) + 1;
    }

    synchronized long count(String message) {
      return messages.stream().filter(message::equals).count();
    }

    @Override
    public void flush() {}

    @Override
    public void close() {
      logger.removeHandler(this);
    }
  }
}
