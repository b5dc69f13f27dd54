package io.palisade.plugin;

/** The head of a response. Immutable. */
public interface Response {

  /**
   * The request that it answers, as a filter judged it, without headers and body: asking for those is an
   * {@link IllegalStateException}.
   *
   * @return the request
   */
  Request request();

  /**
   * The status.
   *
   * @return 200 to 599
   */
  int status();

  /**
   * All header lines.
   *
   * @return in order, with every duplicate
   */
  Headers headers();

  /**
   * The first value of a header as text: {@link Headers#first}.
   *
   * @param name the header's name, in any case
   * @return its first value, or {@code null} if there is no such header
   */
  default String header(String name) {
    return headers().first(name);
  }
}
