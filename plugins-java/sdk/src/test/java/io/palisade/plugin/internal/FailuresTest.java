package io.palisade.plugin.internal;

import static io.palisade.plugin.testing.RequestBuilder.get;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.palisade.plugin.Certificate;
import io.palisade.plugin.Decision;
import io.palisade.plugin.Plugin;
import io.palisade.plugin.testing.CallFailedException;
import io.palisade.plugin.testing.PluginTester;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.logging.Handler;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import org.junit.jupiter.api.Test;

/** Failures that fail again when they are told. */
class FailuresTest {

  /** An exception that can't be read: neither its text nor its stack trace. */
  @SuppressWarnings("serial")
  static final class Unreadable extends RuntimeException {
    @Override
    public String getMessage() {
      throw new IllegalStateException("no message");
    }
  }

  /** An author's log handler that throws. */
  static final class BrokenLog extends Handler implements AutoCloseable {
    private final Logger logger = Logger.getLogger("io.palisade.plugin");

    BrokenLog() {
      logger.addHandler(this);
    }

    @Override
    public void publish(LogRecord record) {
      throw new IllegalStateException("the log is full");
    }

    @Override
    public void flush() {}

    @Override
    public void close() {
      logger.removeHandler(this);
    }
  }

  private static void assertFailsEachTime(Plugin plugin) {
    try (PluginTester tester = PluginTester.of(plugin.maxConcurrentCalls(1))) {
      for (int i = 0; i < 3; i++) {
        CallFailedException thrown =
            assertThrows(CallFailedException.class, () -> tester.check(get("/")));
        assertEquals("INTERNAL", thrown.code());
        assertTrue(thrown.getMessage().contains("Unreadable"), thrown.getMessage());
      }
    }
  }

  private static void assertEachWayFailsEachTime() {
    assertFailsEachTime(
        Plugin.named("test")
            .filter(
                (request, config) -> {
                  throw new Unreadable();
                }));
    assertFailsEachTime(
        Plugin.named("test")
            .filterAsync(
                (request, config) -> {
                  throw new Unreadable();
                }));
    assertFailsEachTime(
        Plugin.named("test")
            .filterAsync((request, config) -> CompletableFuture.failedFuture(new Unreadable())));
  }

  @Test
  void a_call_whose_failure_can_not_be_read_is_answered_and_makes_room() {
    assertEachWayFailsEachTime();
  }

  @Test
  @SuppressWarnings("try")
  void a_call_whose_failure_can_not_be_logged_is_answered_and_makes_room() {
    try (BrokenLog log = new BrokenLog()) {
      assertEachWayFailsEachTime();
    }
  }

  @Test
  @SuppressWarnings("try")
  void certificates_are_loaded_again_after_a_failure_that_can_not_be_read_or_logged() {
    Certificate good =
        Certificate.of(
            "-----BEGIN CERTIFICATE-----\n".getBytes(StandardCharsets.US_ASCII),
            "-----BEGIN PRIVATE KEY-----\n".getBytes(StandardCharsets.US_ASCII));
    AtomicInteger loads = new AtomicInteger();
    Plugin plugin =
        Plugin.named("test")
            .refreshEvery(Duration.ofMillis(10))
            .certificateSet(
                (request, config) -> {
                  if (loads.incrementAndGet() < 3) {
                    throw new Unreadable();
                  }
                  return List.of(good);
                });
    try (BrokenLog log = new BrokenLog();
        PluginTester tester = PluginTester.of(plugin)) {
      assertEquals(List.of(good), tester.certificates());
    }
  }
}
