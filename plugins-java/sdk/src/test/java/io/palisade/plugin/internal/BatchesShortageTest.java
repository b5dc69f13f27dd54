package io.palisade.plugin.internal;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.Status;
import io.grpc.stub.ServerCallStreamObserver;
import io.palisade.plugin.v1.CheckAnswer;
import io.palisade.plugin.v1.CheckBatch;
import io.palisade.plugin.v1.CheckBatchAnswer;
import io.palisade.plugin.v1.CheckCall;
import java.util.HashSet;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executor;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;

/** A stream of batches for which there is not enough of something. */
class BatchesShortageTest {

  private final Host host = new Host();

  private static void judge(Batches stream, CheckCall call, String configHash) {
    stream.answer(CheckAnswer.newBuilder().setId(call.getId()).build(), configHash);
  }

  private static CheckBatch batch(long... ids) {
    CheckBatch.Builder batch = CheckBatch.newBuilder();
    for (long id : ids) {
      batch.addCalls(CheckCall.newBuilder().setId(id));
    }
    return batch.build();
  }

  @Test
  void a_stream_on_which_nothing_can_be_sent_ends() throws Exception {
    host.broken = true;
    new Batches(host, BatchesShortageTest::judge, Runnable::run, Threads.clock()).onNext(batch(1));
    assertEquals(Status.Code.UNAVAILABLE, Status.fromThrowable(host.end.get(30, TimeUnit.SECONDS)).getCode());
    assertEquals(1, host.messages);
  }

  @Test
  void a_call_for_which_there_was_no_thread_is_begun_when_there_is_one() throws Exception {
    Threadless threads = new Threadless();
    Batches stream = new Batches(host, BatchesShortageTest::judge, threads, Threads.clock());
    try (BatchesTest.Log log = new BatchesTest.Log()) {
      threads.none = true;
      stream.onNext(batch(1));
      stream.onNext(batch(2));
      threads.awaitRefusals(5);
      assertEquals(1, log.messages.size(), () -> "" + log.messages);
    }
    threads.none = false;
    host.awaitAnswers(1L, 2L);
  }

  @Test
  void calls_behind_one_that_blocks_are_begun_when_there_are_threads_again() throws Exception {
    Threadless threads = new Threadless();
    CountDownLatch begun = new CountDownLatch(1);
    CountDownLatch go = new CountDownLatch(1);
    Batches stream =
        new Batches(
            host,
            (self, call, hash) -> {
              if (call.getId() == 1) {
                begun.countDown();
                await(go);
              }
              judge(self, call, hash);
            },
            threads,
            Threads.clock());
    stream.onNext(batch(1));
    await(begun);
    threads.none = true;
    stream.onNext(batch(2));
    threads.awaitRefusals(2);
    threads.none = false;
    host.awaitAnswers(2L);
    go.countDown();
    host.awaitAnswers(1L);
    stream.onNext(batch(3));
    host.awaitAnswers(3L);
  }

  private static void await(CountDownLatch latch) {
    try {
      assertTrue(latch.await(30, TimeUnit.SECONDS));
    } catch (InterruptedException e) {
      throw new IllegalStateException(e);
    }
  }

  /** Threads for calls, or none, as the system has them. */
  private static final class Threadless implements Executor {
    private final Executor threads = Threads.forCalls();
    private final Semaphore refusals = new Semaphore(0);
    private volatile boolean none;

    @Override
    public void execute(Runnable task) {
      if (none) {
        refusals.release();
        // The real one is an OutOfMemoryError, for which JUnit ends.
        throw new InternalError("unable to create native thread");
      }
      threads.execute(task);
    }

    void awaitRefusals(int count) throws InterruptedException {
      assertTrue(refusals.tryAcquire(count, 30, TimeUnit.SECONDS), "nobody asks for a thread any more");
    }
  }

  /** The other end of a stream, to which nothing can be sent when it is broken. */
  private static final class Host extends ServerCallStreamObserver<CheckBatchAnswer> {
    private final CompletableFuture<Throwable> end = new CompletableFuture<>();
    private final LinkedBlockingQueue<Long> answered = new LinkedBlockingQueue<>();
    private int messages;
    private boolean broken;

    void awaitAnswers(Long... ids) throws InterruptedException {
      Set<Long> missing = new HashSet<>(Set.of(ids));
      while (!missing.isEmpty()) {
        assertTrue(missing.remove(answered.poll(30, TimeUnit.SECONDS)), () -> "no answer to " + missing);
      }
    }

    @Override
    public void onNext(CheckBatchAnswer message) {
      messages++;
      if (broken) {
        throw new InternalError("no memory");
      }
      message.getAnswersList().forEach(answer -> answered.add(answer.getId()));
    }

    @Override
    public void onError(Throwable thrown) {
      end.complete(thrown);
    }

    @Override
    public void onCompleted() {
      end.complete(null);
    }

    @Override
    public boolean isCancelled() {
      return false;
    }

    @Override
    public boolean isReady() {
      return true;
    }

    @Override
    public void setOnCancelHandler(Runnable handler) {}

    @Override
    public void setOnReadyHandler(Runnable handler) {}

    @Override
    public void setCompression(String compression) {}

    @Override
    public void disableAutoInboundFlowControl() {}

    @Override
    public void request(int count) {}

    @Override
    public void setMessageCompression(boolean enable) {}
  }
}
