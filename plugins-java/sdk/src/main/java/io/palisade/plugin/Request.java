package io.palisade.plugin;

import java.util.Optional;

/**
 * A request as the upstream would get it: normalised once, before any filter. Immutable.
 *
 * <p>The proxy sends only the parts that a plugin {@linkplain Plugin#needs needs}. Asking for a part that was not sent
 * is an {@link IllegalStateException}, so that a filter can't take "not sent" for "not there".
 */
public interface Request {

  /**
   * The method.
   *
   * @return upper case unless the client wrote an extension method otherwise
   */
  String method();

  /**
   * The scheme.
   *
   * @return {@code "http"} or {@code "https"}
   */
  String scheme();

  /**
   * Host and port that the client asked for.
   *
   * @return lower case; the port only if it was written
   */
  String authority();

  /**
   * The normalised path.
   *
   * @return begins with {@code "/"}, or is {@code "*"} for OPTIONS; percent-encoded bytes stay encoded
   */
  String path();

  /**
   * What stands behind {@code "?"}.
   *
   * @return without the {@code "?"}; empty also when there is no {@code "?"}, which {@link #hasQuery()} tells
   */
  String query();

  /**
   * Whether there was a {@code "?"} at all.
   *
   * @return whether there was
   */
  boolean hasQuery();

  /**
   * The protocol.
   *
   * @return {@code "HTTP/1.0"}, {@code "HTTP/1.1"} or {@code "HTTP/2.0"}
   */
  String protocol();

  /**
   * All header lines. {@link Needs.Part#HEADERS}; never sent to a {@link ResponseFilter}.
   *
   * @return with every duplicate, in the order of {@link Headers}
   * @throws IllegalStateException if they were not sent
   */
  Headers headers();

  /**
   * The first value of a header as text: {@link Headers#first}. A client may send a header more than once: look at
   * {@link Headers#all} where that matters.
   *
   * @param name the header's name, in any case
   * @return its first value, or {@code null} if there is no such header
   * @throws IllegalStateException if headers were not sent
   */
  default String header(String name) {
    return headers().first(name);
  }

  /**
   * The client's end of the connection. {@link Needs.Part#ADDRESSES}.
   *
   * @return the address of who is connected, perhaps another proxy
   * @throws IllegalStateException if it was not sent
   */
  Address peer();

  /**
   * The proxy's end of the connection. {@link Needs.Part#ADDRESSES}.
   *
   * @return the address that was connected to
   * @throws IllegalStateException if it was not sent
   */
  Address local();

  /**
   * What is known of the connection's TLS. {@link Needs.Part#TLS} or {@link Needs.Part#PEER_CERTIFICATE}.
   *
   * @return empty on a cleartext connection
   * @throws IllegalStateException if it was not sent
   */
  Optional<TlsFacts> tls();

  /**
   * The name of the listener that took the connection.
   *
   * @return its name
   */
  String listener();

  /**
   * The chosen route. {@link Needs.Part#ROUTE}.
   *
   * @return empty for a filter that stands before routing
   * @throws IllegalStateException if it was not sent
   */
  Optional<Route> route();

  /**
   * The request's id, the same that logs and the {@code x-request-id} header show.
   *
   * @return the id
   */
  String id();

  /**
   * W3C trace context, {@code traceparent}.
   *
   * @return empty when there is none
   */
  String traceparent();

  /**
   * W3C trace context, {@code tracestate}.
   *
   * @return empty when there is none
   */
  String tracestate();

  /**
   * The whole body. {@link Needs.Part#BODY}; never sent to a {@link ResponseFilter}.
   *
   * @return a copy
   * @throws IllegalStateException if it was not sent
   */
  byte[] body();
}
