package io.palisade.plugin;

/** Judges requests, one call for each. Called from many threads at a time. */
@FunctionalInterface
public interface RequestFilter {

  /**
   * Judges one request before it goes on.
   *
   * @param request the request as the upstream would get it
   * @param config the configuration in force when the call began
   * @return what becomes of the request; {@code null} fails the call
   * @throws Exception if no decision can be made; the call fails and the stack trace is logged
   */
  Decision check(Request request, Config config) throws Exception;
}
