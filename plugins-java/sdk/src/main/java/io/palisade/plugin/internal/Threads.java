package io.palisade.plugin.internal;

import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/** Threads with names, none of which keeps the process alive. */
final class Threads {

  private Threads() {}

  static Thread daemon(Runnable task, String name) {
    Thread thread = new Thread(task, name);
    thread.setDaemon(true);
    return thread;
  }

  /** One thread that is there while something is to be done later. */
  static ScheduledExecutorService clock() {
    ScheduledThreadPoolExecutor clock =
        new ScheduledThreadPoolExecutor(1, task -> daemon(task, "palisade-clock"));
    clock.setKeepAliveTime(10, TimeUnit.SECONDS);
    clock.allowCoreThreadTimeOut(true);
    clock.setRemoveOnCancelPolicy(true);
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
