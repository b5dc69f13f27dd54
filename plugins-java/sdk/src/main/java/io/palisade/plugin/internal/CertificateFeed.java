package io.palisade.plugin.internal;

import io.palisade.plugin.Certificate;
import io.palisade.plugin.CertificateRequest.Reason;
import io.palisade.plugin.CertificateRequest;
import io.palisade.plugin.CertificateSetLoader;
import io.palisade.plugin.Config;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.Executors;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.TimeUnit;
import java.util.logging.Level;
import java.util.logging.Logger;

/**
 * Calls the certificate loader at its times, keeps the last result that was good, and tells who watches when it
 * differs from the one before. Loads on one thread of its own.
 */
final class CertificateFeed implements AutoCloseable {

  private static final Logger logger = Logger.getLogger(CertificateFeed.class.getName());

  private final CertificateSetLoader loader;
  private final Duration interval;
  private final ScheduledExecutorService thread =
      Executors.newSingleThreadScheduledExecutor(
          task -> Threads.daemon(task, "palisade-certificates"));
  private final List<Runnable> watchers = new CopyOnWriteArrayList<>();
  private volatile Map<String, Certificate> lastGood;

  // Only on the thread.
  private Config config;
  private ScheduledFuture<?> refresh;
  private String lastFailure;

  CertificateFeed(CertificateSetLoader loader, Duration interval) {
    this.loader = loader;
    this.interval = interval;
  }

  /** Loads by a new configuration, at once and from then on at intervals. */
  void configured(Config newConfig) {
    run(
        () -> {
          config = newConfig;
          load(Reason.CONFIGURED);
        });
  }

  /** Loads at once, if there is a configuration to load by. */
  void reload() {
    run(
        () -> {
          if (config != null) {
            load(Reason.RELOAD);
          }
        });
  }

  /** The last good certificates by name, in the loader's order; {@code null} before there are any. */
  Map<String, Certificate> lastGood() {
    return lastGood;
  }

  /** Runs the watcher after every change, on the feed's thread; it must not block. */
  void watch(Runnable watcher) {
    watchers.add(watcher);
  }

  void unwatch(Runnable watcher) {
    watchers.remove(watcher);
  }

  @Override
  public void close() {
    thread.shutdownNow();
  }

  private void run(Runnable task) {
    try {
      thread.execute(task);
    } catch (RejectedExecutionException e) {
      logger.log(Level.FINE, "certificates are no longer loaded", e);
    }
  }

  private void load(Reason reason) {
    if (refresh != null) {
      refresh.cancel(false);
    }
    try {
      Map<String, Certificate> loaded =
          byName(loader.load(new CertificateRequest(reason), config));
      lastFailure = null;
      if (!loaded.equals(lastGood)) {
        lastGood = loaded;
        Handlers.log(logger, Level.INFO, "certificates have changed: " + loaded.values());
        watchers.forEach(Runnable::run);
      }
    } catch (Throwable e) {
      report(e);
    } finally {
      if (!thread.isShutdown()) {
        refresh =
            thread.schedule(() -> load(Reason.REFRESH), interval.toNanos(), TimeUnit.NANOSECONDS);
      }
    }
  }

  /** Once with the stack trace; the same failure at every interval would drown the log. */
  private void report(Throwable failure) {
    String text = Handlers.text(failure);
    if (text.equals(lastFailure)) {
      Handlers.log(logger, Level.FINE, "certificates still can't be loaded: " + text);
      return;
    }
    lastFailure = text;
    Handlers.log(
        logger,
        Level.SEVERE,
        lastGood == null
            ? "certificates can't be loaded; there are none yet"
            : "certificates can't be loaded; those from before stay",
        failure);
  }

  private static Map<String, Certificate> byName(List<Certificate> certificates) {
    if (certificates == null) {
      throw new NullPointerException("the certificate loader returned null");
    }
    Map<String, Certificate> byName = new LinkedHashMap<>();
    for (Certificate certificate : certificates) {
      if (byName.put(certificate.name(), certificate) != null) {
        throw new IllegalArgumentException(
            "two certificates have the name " + certificate.name() + ": see Certificate.named");
      }
    }
    return byName;
  }
}
