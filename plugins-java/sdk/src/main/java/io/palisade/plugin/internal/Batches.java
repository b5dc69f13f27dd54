package io.palisade.plugin.internal;

import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import io.palisade.plugin.v1.CheckAnswer;
import io.palisade.plugin.v1.CheckBatch;
import io.palisade.plugin.v1.CheckBatchAnswer;
import io.palisade.plugin.v1.CheckCall;
import io.palisade.plugin.v1.CheckError;
import io.palisade.plugin.v1.Reply;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.Executor;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.logging.Level;
import java.util.logging.Logger;

/**
 * One stream of calls that come many in a message.
 *
 * <p>Calls are begun one after the other on a single thread, as long as they are quick: a thread for each would cost
 * more than most of them take. When one blocks, other threads take over what waits behind it.
 */
final class Batches implements StreamObserver<CheckBatch> {

  private static final Logger logger = Logger.getLogger(Batches.class.getName());

  /** How long calls wait behind one that is worked on before other threads take over. */
  private static final long PATIENCE_MICROS = 1000;

  /** How long to wait for a thread when none could be made. The JVM prints a line each time that it fails. */
  private static final long SHORTAGE_MICROS = 100_000;

  /** A message is sent when its answers have this many bytes together; with the largest one it stays below 2 MiB. */
  private static final int FULL = 256 << 10;

  /** A reply of 1 MiB and its headers. A larger answer would cost the whole stream. */
  private static final int LARGEST_ANSWER = (1 << 20) + (128 << 10);

  /** Made before there may be no memory for it. */
  private static final StatusRuntimeException UNSENT =
      Status.UNAVAILABLE.withDescription("answers could not be sent").asRuntimeException();

  /** Begins one call; its answer goes to {@link Batches#answer} or {@link Batches#fail}, once, on any thread. */
  interface Judge {
    void begin(Batches stream, CheckCall call, String configHash);
  }

  private record Waiting(CheckCall call, String configHash, AtomicInteger left) {}

  /** The hash is empty for what is no verdict. */
  private record Answered(CheckAnswer answer, String configHash) {
    boolean fitsBeside(String configHash) {
      return configHash.isEmpty()
          || this.configHash.isEmpty()
          || this.configHash.equals(configHash);
    }
  }

  private final ServerCallStreamObserver<CheckBatchAnswer> host;
  private final Judge judge;
  private final Executor threads;
  private final ScheduledExecutorService clock;
  private final Queue<Waiting> queue = new ConcurrentLinkedQueue<>();
  private final Queue<Answered> answers = new ConcurrentLinkedQueue<>();
  private final AtomicInteger taken = new AtomicInteger();
  private final AtomicInteger working = new AtomicInteger();
  private final AtomicInteger begun = new AtomicInteger();
  private final AtomicInteger open = new AtomicInteger();
  private final AtomicInteger watching = new AtomicInteger();
  private volatile boolean shortOfThreads;
  private volatile boolean closing;
  private boolean closed; // Guarded by this, as is sending.

  Batches(
      StreamObserver<CheckBatchAnswer> host,
      Judge judge,
      Executor threads,
      ScheduledExecutorService clock) {
    this.host = (ServerCallStreamObserver<CheckBatchAnswer>) host;
    this.judge = judge;
    this.threads = threads;
    this.clock = clock;
  }

  /** Whether nobody is there any more to be answered. */
  boolean isGone() {
    return host.isCancelled();
  }

  ScheduledExecutorService clock() {
    return clock;
  }

  @Override
  public void onNext(CheckBatch batch) {
    int count = batch.getCallsCount();
    if (count == 0) {
      taken.incrementAndGet();
      send();
      return;
    }
    open.addAndGet(count);
    AtomicInteger left = new AtomicInteger(count);
    for (CheckCall call : batch.getCallsList()) {
      queue.add(new Waiting(call, batch.getConfigHash(), left));
    }
    if (working.compareAndSet(0, 1)) {
      run();
    }
    if (watching.compareAndSet(0, 1)) {
      watchAfter(begun.get());
    }
  }

  @Override
  public void onError(Throwable thrown) {
    // The host has gone. What it asked is worked on to its end; nobody gets the answers.
    closing = true;
    queue.clear();
  }

  @Override
  public void onCompleted() {
    close();
  }

  /** Takes no more batches; ends the stream when what it has is answered. */
  void close() {
    closing = true;
    send();
  }

  void answer(CheckAnswer answer, String configHash) {
    int size = answer.getSerializedSize();
    if (size > LARGEST_ANSWER) {
      tooLarge(answer, size, configHash);
      return;
    }
    answers.add(new Answered(answer, configHash));
    open.decrementAndGet();
    // Whoever works on a batch sends when it is through.
    if (working.get() == 0) {
      send();
    }
  }

  /**
   * What is answered in place of one that is too large: an error, but for a denial one without a reply, since an
   * error may let the request pass. It can't be sent to a client, as the large one can't, so the host refuses the
   * request by itself, whatever {@code on_failure} says.
   */
  private void tooLarge(CheckAnswer answer, int size, String configHash) {
    String fault = "an answer of " + size + " bytes, at most " + LARGEST_ANSWER;
    Handlers.log(logger, Level.SEVERE, fault);
    CheckAnswer.Builder denial = CheckAnswer.newBuilder().setId(answer.getId());
    if (answer.getRequest().hasDeny()) {
      denial.getRequestBuilder().setDeny(Reply.getDefaultInstance());
      answer(denial.build(), configHash);
    } else if (answer.getResponse().hasReplace()) {
      denial.getResponseBuilder().setReplace(Reply.getDefaultInstance());
      answer(denial.build(), configHash);
    } else {
      fail(answer.getId(), Status.INTERNAL.withDescription(fault));
    }
  }

  void fail(long id, Status status) {
    String description = status.getDescription();
    answer(
        CheckAnswer.newBuilder()
            .setId(id)
            .setError(
                CheckError.newBuilder()
                    .setCode(status.getCode().value())
                    .setMessage(description == null ? "" : description))
            .build(),
        "");
  }

  /** Starts a worker, which the caller has counted. False if there is no thread for it: {@link #watch} tries again. */
  private boolean run() {
    try {
      threads.execute(this::work);
      shortOfThreads = false;
      return true;
    } catch (Throwable e) {
      working.decrementAndGet();
      if (!shortOfThreads) {
        shortOfThreads = true;
        Handlers.log(logger, Level.SEVERE, "calls wait for a thread, and none can be made", e);
      }
      return false;
    }
  }

  /** Begins calls until there are none. */
  private void work() {
    while (true) {
      Waiting next = queue.poll();
      if (next == null) {
        working.decrementAndGet();
        // A call that came meanwhile has found somebody at work.
        if (queue.isEmpty() || !working.compareAndSet(0, 1)) {
          break;
        }
        continue;
      }
      begun.incrementAndGet();
      boolean last = next.left.decrementAndGet() == 0;
      if (last) {
        taken.incrementAndGet();
      }
      begin(next);
      if (last) {
        send();
      }
    }
    send();
  }

  /** Does not throw: the worker would go on being counted. */
  private void begin(Waiting next) {
    // Another call's filter may have left its thread interrupted.
    Thread.interrupted();
    try {
      judge.begin(this, next.call, next.configHash);
    } catch (Throwable e) {
      Handlers.log(logger, Level.SEVERE, "a call could not be begun", e);
      try {
        fail(next.call.getId(), Handlers.failure("the call could not be begun", e).getStatus());
      } catch (Throwable again) {
        Handlers.log(logger, Level.SEVERE, "a call stays without an answer", again);
      }
    }
  }

  private void watchAfter(int seen) {
    try {
      long delay = shortOfThreads ? SHORTAGE_MICROS : PATIENCE_MICROS;
      clock.schedule(() -> watch(seen), delay, TimeUnit.MICROSECONDS);
    } catch (Throwable e) {
      // The plugin ends, or there is no memory: then the next batch tries again.
      watching.set(0);
      Handlers.log(logger, Level.FINE, "nobody watches a stream", e);
    }
  }

  /** Brings in more threads when those at work, if any, have begun no call for a while. */
  private void watch(int seen) {
    if (queue.isEmpty() && working.get() == 0) {
      watching.set(0);
      // A batch that came meanwhile has found somebody watching.
      if (queue.isEmpty() || !watching.compareAndSet(0, 1)) {
        return;
      }
    }
    int now = begun.get();
    try {
      if (now == seen) {
        // One that blocks is no reason for the host to wait for the others.
        send();
        boolean found = true;
        for (int more = queue.size(); found && more > 0; more--) {
          working.incrementAndGet();
          found = run();
        }
      }
    } finally {
      watchAfter(now);
    }
  }

  /** Sends what is there. Does not throw: a worker would be missed, and a call be told a second time. */
  private synchronized void send() {
    if (closed) {
      return;
    }
    try {
      sendAll();
    } catch (Throwable e) {
      // What was in the message is lost. Over a new stream the host makes again what is open.
      closed = true;
      queue.clear();
      answers.clear();
      Handlers.log(logger, Level.SEVERE, "answers could not be sent", e);
      end(UNSENT);
    }
  }

  private void end(StatusRuntimeException failure) {
    try {
      host.onError(failure);
    } catch (Throwable e) {
      Handlers.log(logger, Level.FINE, "the stream has ended already", e);
    }
  }

  private void sendAll() {
    while (!answers.isEmpty() || taken.get() > 0) {
      CheckBatchAnswer.Builder message = CheckBatchAnswer.newBuilder().setTaken(taken.getAndSet(0));
      int size = 0;
      // A message has one configuration only.
      for (Answered next;
          size < FULL
              && (next = answers.peek()) != null
              && next.fitsBeside(message.getConfigHash()); ) {
        answers.remove();
        message.addAnswers(next.answer);
        if (!next.configHash.isEmpty()) {
          message.setConfigHash(next.configHash);
        }
        size += next.answer.getSerializedSize();
      }
      if (host.isCancelled()) {
        closed = true;
        answers.clear();
        return;
      }
      host.onNext(message.build());
    }
    if (closing && open.get() == 0 && answers.isEmpty()) {
      closed = true;
      if (!host.isCancelled()) {
        host.onCompleted();
      }
    }
  }
}
