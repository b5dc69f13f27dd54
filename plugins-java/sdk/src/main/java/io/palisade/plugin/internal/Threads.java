package io.palisade.plugin.internal;

import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.atomic.AtomicInteger;

/** Threads with names, none of which keeps the process alive. */
final class Threads {

  private Threads() {}

  static Thread daemon(Runnable task, String name) {
    Thread thread = new Thread(task, name);
    thread.setDaemon(true);
    return thread;
  }

  /** One thread for what is to be done later. It is there from the start: a shortage of threads needs it. */
  static ScheduledExecutorService clock() {
    ScheduledThreadPoolExecutor clock =
        new ScheduledThreadPoolExecutor(1, task -> daemon(task, "palisade-clock"));
    clock.setRemoveOnCancelPolicy(true);
    clock.prestartCoreThread();
    return clock;
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
