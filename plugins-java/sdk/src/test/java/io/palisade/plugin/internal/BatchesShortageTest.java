package io.palisade.plugin.internal;

import static org.junit.jupiter.api.Assertions.assertEquals;

import io.grpc.Status;
import io.grpc.stub.ServerCallStreamObserver;
import io.palisade.plugin.v1.CheckAnswer;
import io.palisade.plugin.v1.CheckBatch;
import io.palisade.plugin.v1.CheckBatchAnswer;
import io.palisade.plugin.v1.CheckCall;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;

/** A stream of batches for which there is not enough of something. */
class BatchesShortageTest {

  @Test
  void a_stream_on_which_nothing_can_be_sent_ends() throws Exception {
    BrokenHost host = new BrokenHost();
    Batches stream =
        new Batches(
            host,
            (self, call, hash) -> self.answer(CheckAnswer.newBuilder().setId(call.getId()).build(), hash),
            Runnable::run,
            Threads.clock());
    stream.onNext(CheckBatch.newBuilder().addCalls(CheckCall.newBuilder().setId(1)).build());
    assertEquals(Status.Code.UNAVAILABLE, Status.fromThrowable(host.end.get(30, TimeUnit.SECONDS)).getCode());
    assertEquals(1, host.messages);
  }

  /** One to whom nothing can be sent, since there is no memory for it. */
  private static final class BrokenHost extends ServerCallStreamObserver<CheckBatchAnswer> {
    private final CompletableFuture<Throwable> end = new CompletableFuture<>();
    private int messages;

    @Override
    public void onNext(CheckBatchAnswer message) {
      messages++;
      throw new InternalError("no memory");
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
