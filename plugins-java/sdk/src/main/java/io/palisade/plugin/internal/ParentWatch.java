package io.palisade.plugin.internal;

import java.util.Optional;

/** Notices the death of the process that started this one. */
final class ParentWatch {

  /** How long a plugin may outlive its host. */
  private static final long INTERVAL_MILLIS = 500;

  private ParentWatch() {}

  /**
   * Runs an action once this process gets another parent, which is how an orphan shows. Works also under a parent
   * with pid 1, and, unlike {@link ProcessHandle#onExit}, is not fooled by a pid that is used again.
   */
  static void start(Runnable onDeath) {
    Optional<Long> host = parent();
    Threads.daemon(() -> watch(host, onDeath), "palisade-parent-watch").start();
  }

  private static void watch(Optional<Long> host, Runnable onDeath) {
    try {
      while (parent().equals(host)) {
        Thread.sleep(INTERVAL_MILLIS);
      }
      onDeath.run();
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  private static Optional<Long> parent() {
    return ProcessHandle.current().parent().map(ProcessHandle::pid);
  }
}
