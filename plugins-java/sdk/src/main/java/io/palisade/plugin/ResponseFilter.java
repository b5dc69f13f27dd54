package io.palisade.plugin;

/** Judges the heads of responses, one call for each. Called from many threads at a time. */
@FunctionalInterface
public interface ResponseFilter {

  /**
   * Judges the head of one response before it goes to the client, also of responses that the proxy made itself.
   *
   * @param response status and headers of the response, and the request that it answers
   * @param config the configuration in force when the call began
   * @return what becomes of the response; {@code null} fails the call
   * @throws Exception if no decision can be made; the call fails and the stack trace is logged
   */
  ResponseDecision check(Response response, Config config) throws Exception;
}
