package io.palisade.plugin.internal;

import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicInteger;

/** Threads with names, none of which keeps the process alive. */
final class Threads {

  private Threads() {}

  static Thread daemon(Runnable task, String name) {
    Thread thread = new Thread(task, name);
    thread.setDaemon(true);
    return thread;
  }

  /**
   * As many threads as there are calls. The number of calls is what bounds it: a filter's calls by
   * {@code maxConcurrentCalls}, and a host makes few others.
   */
  static ExecutorService forCalls() {
    AtomicInteger count = new AtomicInteger();
    return Executors.newCachedThreadPool(
        task -> daemon(task, "palisade-call-" + count.incrementAndGet()));
  }
}
