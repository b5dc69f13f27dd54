package io.palisade.plugin;

import java.util.concurrent.CompletionStage;

/** Judges requests without holding a thread while it waits. Called from many threads at a time. */
@FunctionalInterface
public interface AsyncRequestFilter {

  /**
   * Begins to judge one request. When the proxy gives the call up, the call ends, and the stage is left alone, not
   * cancelled: several calls may share one. Bound by yourself what it waits for, as with
   * {@link java.util.concurrent.CompletableFuture#orTimeout}.
   *
   * @param request the request as the upstream would get it; valid after this method has returned
   * @param config the configuration in force when the call began
   * @return the decision to come; {@code null}, a stage that fails and a stage that gives {@code null} fail the call
   * @throws Exception if no decision can be made; the call fails and the stack trace is logged
   */
  CompletionStage<Decision> check(Request request, Config config) throws Exception;
}
