package io.palisade.plugin.internal;

import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import io.palisade.plugin.Config;
import io.palisade.plugin.Decision;
import io.palisade.plugin.ResponseDecision;
import io.palisade.plugin.v1.CallContext;
import io.palisade.plugin.v1.CheckAnswer;
import io.palisade.plugin.v1.CheckBatch;
import io.palisade.plugin.v1.CheckBatchAnswer;
import io.palisade.plugin.v1.CheckCall;
import io.palisade.plugin.v1.CheckRequestRequest;
import io.palisade.plugin.v1.CheckRequestResponse;
import io.palisade.plugin.v1.CheckResponseRequest;
import io.palisade.plugin.v1.CheckResponseResponse;
import io.palisade.plugin.v1.FilterGrpc;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executor;
import java.util.concurrent.Future;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BiFunction;
import java.util.function.Function;
import java.util.logging.Level;
import java.util.logging.Logger;

/** Asks the plugin's filters. Whatever goes wrong there fails the call; nothing of it is ever a verdict. */
final class FilterService extends FilterGrpc.FilterImplBase {

  private static final Logger logger = Logger.getLogger(FilterService.class.getName());

  /** Made before there may be no memory for it. */
  private static final StatusRuntimeException UNSENT =
      Status.INTERNAL.withDescription("the answer could not be sent").asRuntimeException();

  private static final StatusRuntimeException EXPIRED =
      Status.DEADLINE_EXCEEDED.withDescription("the verdict has not come in time").asRuntimeException();

  private final Definition definition;
  private final Configuration configuration;
  private final Executor threads;
  private final ScheduledExecutorService clock = Threads.clock();
  private final Set<Batches> streams = ConcurrentHashMap.newKeySet();
  private final AtomicInteger calls = new AtomicInteger();
  private volatile boolean closing;

  FilterService(Definition definition, Configuration configuration, Executor threads) {
    this.definition = definition;
    this.configuration = configuration;
    this.threads = threads;
  }

  @Override
  public void checkRequest(
      CheckRequestRequest message, StreamObserver<CheckRequestResponse> observer) {
    checkRequest(
        message,
        "",
        new Alone<>(observer, (answer, hash) -> answer.toBuilder().setConfigHash(hash).build()));
  }

  @Override
  public void checkResponse(
      CheckResponseRequest message, StreamObserver<CheckResponseResponse> observer) {
    if (definition.responseFilter() == null) {
      super.checkResponse(message, observer);
      return;
    }
    checkResponse(
        message,
        "",
        new Alone<>(observer, (answer, hash) -> answer.toBuilder().setConfigHash(hash).build()));
  }

  @Override
  public StreamObserver<CheckBatch> checkBatches(StreamObserver<CheckBatchAnswer> observer) {
    Batches stream = new Batches(observer, this::begin, threads, clock);
    ServerCallStreamObserver<CheckBatchAnswer> call =
        (ServerCallStreamObserver<CheckBatchAnswer>) observer;
    call.setOnCancelHandler(() -> streams.remove(stream));
    call.setOnCloseHandler(() -> streams.remove(stream));
    streams.add(stream);
    if (closing) {
      stream.close();
    }
    return stream;
  }

  /** Ends streams as soon as their calls are answered. */
  void close() {
    closing = true;
    streams.forEach(Batches::close);
  }

  /** Leaves calls to themselves that are under way. */
  void abandon() {
    clock.shutdownNow();
  }

  /** One call of a batch. */
  private void begin(Batches stream, CheckCall call, String configHash) {
    switch (call.getCallCase()) {
      case REQUEST -> checkRequest(
          call.getRequest(),
          configHash,
          new Batched<>(stream, call, CheckAnswer.Builder::setRequest));
      case RESPONSE -> {
        if (definition.responseFilter() == null) {
          stream.fail(call.getId(), Status.UNIMPLEMENTED.withDescription("no response filter"));
        } else {
          checkResponse(
              call.getResponse(),
              configHash,
              new Batched<>(stream, call, CheckAnswer.Builder::setResponse));
        }
      }
      default -> stream.fail(
          call.getId(),
          Status.UNIMPLEMENTED.withDescription("a call that this plugin does not know"));
    }
  }

  private void checkRequest(
      CheckRequestRequest message, String configHash, Caller<CheckRequestResponse> caller) {
    WireRequest request =
        new WireRequest(
            message.getContext(), message.getRequest(), definition.needs().parts(), false);
    answer(
        caller,
        message.getContext(),
        configHash,
        "the filter",
        config -> definition.requestFilter().check(request, config),
        (Decision decision) -> Wire.decision(decision));
  }

  private void checkResponse(
      CheckResponseRequest message, String configHash, Caller<CheckResponseResponse> caller) {
    WireRequest request =
        new WireRequest(message.getContext(), message.getRequest(), definition.needs().parts(), true);
    WireResponse response =
        new WireResponse(request, message.getStatus(), Wire.headers(message.getHeadersList()));
    answer(
        caller,
        message.getContext(),
        configHash,
        "the response filter",
        config ->
            CompletableFuture.completedFuture(definition.responseFilter().check(response, config)),
        (ResponseDecision decision) -> Wire.decision(decision));
  }

  /** One call of a plugin's filter. */
  private interface Call<T> {
    CompletionStage<T> begin(Config config) throws Exception;
  }

  /** Who asked. */
  private interface Caller<M> {
    /** Whether nobody waits for the answer any more. */
    boolean isGone();

    /** What it is answered, and the hash of the configuration that this comes of. */
    void answer(M message, String configHash);

    void fail(StatusRuntimeException failure);

    /** Runs this when nobody waits any more. What it returns takes that back. */
    Runnable whenGone(Runnable run);
  }

  /** A call of its own. */
  private record Alone<M>(
      ServerCallStreamObserver<M> observer, BiFunction<M, String, M> withConfigHash)
      implements Caller<M> {
    Alone(StreamObserver<M> observer, BiFunction<M, String, M> withConfigHash) {
      this((ServerCallStreamObserver<M>) observer, withConfigHash);
    }

    @Override
    public boolean isGone() {
      return observer.isCancelled();
    }

    @Override
    public void answer(M message, String configHash) {
      observer.onNext(withConfigHash.apply(message, configHash));
      observer.onCompleted();
    }

    @Override
    public void fail(StatusRuntimeException failure) {
      observer.onError(failure);
    }

    @Override
    public Runnable whenGone(Runnable run) {
      observer.setOnCancelHandler(run);
      // It goes with the call.
      return () -> {};
    }
  }

  /** A call of a batch. */
  private record Batched<M>(
      Batches stream, CheckCall call, BiFunction<CheckAnswer.Builder, M, CheckAnswer.Builder> set)
      implements Caller<M> {
    @Override
    public boolean isGone() {
      return stream.isGone();
    }

    @Override
    public void answer(M message, String configHash) {
      stream.answer(
          set.apply(CheckAnswer.newBuilder().setId(call.getId()), message).build(), configHash);
    }

    @Override
    public void fail(StatusRuntimeException failure) {
      stream.fail(call.getId(), failure.getStatus());
    }

    @Override
    public Runnable whenGone(Runnable run) {
      try {
        Future<?> timer = stream.clock().schedule(run, call.getTimeoutMicros(), TimeUnit.MICROSECONDS);
        return () -> timer.cancel(false);
      } catch (RejectedExecutionException e) {
        Handlers.log(logger, Level.FINE, "the plugin ends", e);
        return () -> {};
      }
    }
  }

  private <T, M> void answer(
      Caller<M> caller,
      CallContext context,
      String configHash,
      String who,
      Call<T> call,
      Function<T, M> message) {
    Configuration.InForce inForce;
    try {
      inForce = configuration.forCall(configHash.isEmpty() ? context.getConfigHash() : configHash);
    } catch (StatusRuntimeException e) {
      caller.fail(e);
      return;
    }
    int limit = definition.maxConcurrentCalls();
    if (calls.incrementAndGet() > limit && limit > 0) {
      calls.decrementAndGet();
      caller.fail(
          Status.RESOURCE_EXHAUSTED
              .withDescription("the plugin works on " + limit + " calls already")
              .asRuntimeException());
      return;
    }
    Answer<T, M> answer = new Answer<>(caller, who, message, inForce.hash());
    try {
      CompletionStage<T> stage = call.begin(inForce.config());
      if (stage == null) {
        throw new NullPointerException(who + " returned null");
      }
      answer.follow(stage);
    } catch (Throwable e) {
      answer.fail(e);
    }
  }

  /** The end of one call: exactly one verdict or one error. */
  private final class Answer<T, M> {
    private final Caller<M> caller;
    private final String who;
    private final Function<T, M> message;
    private final String configHash;
    private final AtomicBoolean ended = new AtomicBoolean();
    private volatile Runnable forget = () -> {};

    Answer(Caller<M> caller, String who, Function<T, M> message, String configHash) {
      this.caller = caller;
      this.who = who;
      this.message = message;
      this.configHash = configHash;
    }

    void follow(CompletionStage<T> stage) {
      // As what is no asynchronous filter gives, and one that need not wait.
      if (stage instanceof CompletableFuture<T> future && future.isDone() && !future.isCompletedExceptionally()) {
        succeed(future.join());
        return;
      }
      // Before the stage can end the call, which then takes it back.
      forget = caller.whenGone(this::expire);
      stage.whenComplete(
          (verdict, thrown) -> {
            if (thrown != null) {
              fail(Handlers.unwrap(thrown));
            } else {
              succeed(verdict);
            }
          });
    }

    /** Leaves the stage alone: other calls may wait for the same one. */
    private void expire() {
      if (end()) {
        tell(() -> caller.fail(EXPIRED));
      }
    }

    private void succeed(T verdict) {
      M answer;
      try {
        if (verdict == null) {
          throw new NullPointerException(who + " gave null for a decision");
        }
        answer = message.apply(verdict);
      } catch (Throwable e) {
        fail(e);
        return;
      }
      if (end()) {
        tell(() -> caller.answer(answer, configHash));
      }
    }

    void fail(Throwable thrown) {
      boolean first = end();
      // What fails after its call is over, or after the host gave it up, is no news.
      Handlers.log(logger, first && !caller.isGone() ? Level.SEVERE : Level.FINE, who + " failed", thrown);
      if (first) {
        tell(() -> caller.fail(Handlers.failure(who + " failed", thrown)));
      }
    }

    /** Gives the call's place to another one, before anything that may throw. False if the call has ended before. */
    private boolean end() {
      boolean first = ended.compareAndSet(false, true);
      if (first) {
        calls.decrementAndGet();
        forget.run();
      }
      return first;
    }

    private void tell(Runnable send) {
      // The host may have given up meanwhile; then nobody is there to be told.
      if (caller.isGone()) {
        return;
      }
      try {
        send.run();
      } catch (Throwable e) {
        Handlers.log(logger, caller.isGone() ? Level.FINE : Level.SEVERE, "an answer could not be sent", e);
        tellNothingElse();
      }
    }

    private void tellNothingElse() {
      try {
        caller.fail(UNSENT);
      } catch (Throwable e) {
        Handlers.log(logger, Level.FINE, "the host gave the call up", e);
      }
    }
  }
}
