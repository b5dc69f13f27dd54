package io.palisade.plugin.internal;

import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import io.palisade.plugin.Config;
import io.palisade.plugin.Decision;
import io.palisade.plugin.ResponseDecision;
import io.palisade.plugin.v1.CallContext;
import io.palisade.plugin.v1.CheckRequestRequest;
import io.palisade.plugin.v1.CheckRequestResponse;
import io.palisade.plugin.v1.CheckResponseRequest;
import io.palisade.plugin.v1.CheckResponseResponse;
import io.palisade.plugin.v1.FilterGrpc;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Function;
import java.util.logging.Level;
import java.util.logging.Logger;

/** Asks the plugin's filters. Whatever goes wrong there fails the call; nothing of it is ever a verdict. */
final class FilterService extends FilterGrpc.FilterImplBase {

  private static final Logger logger = Logger.getLogger(FilterService.class.getName());

  private final Definition definition;
  private final Configuration configuration;
  private final AtomicInteger calls = new AtomicInteger();

  FilterService(Definition definition, Configuration configuration) {
    this.definition = definition;
    this.configuration = configuration;
  }

  @Override
  public void checkRequest(
      CheckRequestRequest message, StreamObserver<CheckRequestResponse> observer) {
    WireRequest request =
        new WireRequest(
            message.getContext(), message.getRequest(), definition.needs().parts(), false);
    answer(
        observer,
        message.getContext(),
        "the filter",
        config -> definition.requestFilter().check(request, config),
        (Decision decision) -> Wire.decision(decision));
  }

  @Override
  public void checkResponse(
      CheckResponseRequest message, StreamObserver<CheckResponseResponse> observer) {
    if (definition.responseFilter() == null) {
      super.checkResponse(message, observer);
      return;
    }
    WireRequest request =
        new WireRequest(message.getContext(), message.getRequest(), definition.needs().parts(), true);
    WireResponse response =
        new WireResponse(request, message.getStatus(), Wire.headers(message.getHeadersList()));
    answer(
        observer,
        message.getContext(),
        "the response filter",
        config ->
            CompletableFuture.completedFuture(definition.responseFilter().check(response, config)),
        (ResponseDecision decision) -> Wire.decision(decision));
  }

  /** One call of a plugin's filter. */
  private interface Call<T> {
    CompletionStage<T> begin(Config config) throws Exception;
  }

  private <T, M> void answer(
      StreamObserver<M> observer,
      CallContext context,
      String who,
      Call<T> call,
      Function<T, M> message) {
    Config config;
    try {
      config = configuration.forCall(context);
    } catch (StatusRuntimeException e) {
      observer.onError(e);
      return;
    }
    int limit = definition.maxConcurrentCalls();
    if (calls.incrementAndGet() > limit && limit > 0) {
      calls.decrementAndGet();
      observer.onError(
          Status.RESOURCE_EXHAUSTED
              .withDescription("the plugin works on " + limit + " calls already")
              .asRuntimeException());
      return;
    }
    Answer<T, M> answer = new Answer<>(observer, who, message);
    CompletionStage<T> stage;
    try {
      stage = call.begin(config);
    } catch (Throwable e) {
      answer.fail(e);
      return;
    }
    if (stage == null) {
      answer.fail(new NullPointerException(who + " returned null"));
      return;
    }
    answer.follow(stage);
  }

  /** The end of one call: exactly one verdict or one error. */
  private final class Answer<T, M> {
    private final ServerCallStreamObserver<M> observer;
    private final String who;
    private final Function<T, M> message;
    private final AtomicBoolean ended = new AtomicBoolean();

    Answer(StreamObserver<M> observer, String who, Function<T, M> message) {
      this.observer = (ServerCallStreamObserver<M>) observer;
      this.who = who;
      this.message = message;
    }

    void follow(CompletionStage<T> stage) {
      stage.whenComplete(
          (verdict, thrown) -> {
            if (thrown != null) {
              fail(Handlers.unwrap(thrown));
            } else {
              succeed(verdict);
            }
          });
      if (stage instanceof CompletableFuture<T> future && !future.isDone()) {
        observer.setOnCancelHandler(() -> future.cancel(true));
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
      end(
          () -> {
            observer.onNext(answer);
            observer.onCompleted();
          });
    }

    void fail(Throwable thrown) {
      // A call that the host gave up fails by its own cancellation; that is no news.
      logger.log(observer.isCancelled() ? Level.FINE : Level.SEVERE, who + " failed", thrown);
      end(() -> observer.onError(Handlers.failure(who + " failed", thrown)));
    }

    private void end(Runnable send) {
      if (!ended.compareAndSet(false, true)) {
        return;
      }
      calls.decrementAndGet();
      // The host may have given up meanwhile; then nobody is there to be told.
      if (!observer.isCancelled()) {
        try {
          send.run();
        } catch (StatusRuntimeException e) {
          logger.log(Level.FINE, "the host gave the call up", e);
        }
      }
    }
  }
}
