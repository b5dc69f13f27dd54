package io.palisade.plugin.testing;

import io.palisade.plugin.Address;
import io.palisade.plugin.Header;
import io.palisade.plugin.Headers;
import io.palisade.plugin.Request;
import io.palisade.plugin.Route;
import io.palisade.plugin.TlsFacts;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.Optional;

/**
 * Makes requests for tests. What is not said is: cleartext HTTP/1.1 for {@code test.example} from
 * {@code 127.0.0.1:50000} to {@code 127.0.0.1:8080}, listener and id {@code "test"}, no headers, no route, no trace, an
 * empty body.
 */
public final class RequestBuilder {

  private final String method;
  private final String path;
  private final String query;
  private final List<Header> headers = new ArrayList<>();
  private String scheme = "http";
  private String authority = "test.example";
  private String protocol = "HTTP/1.1";
  private Address peer = new Address.Ip("127.0.0.1", 50000);
  private Address local = new Address.Ip("127.0.0.1", 8080);
  private TlsFacts tls;
  private String listener = "test";
  private Route route;
  private String id = "test";
  private String traceparent = "";
  private String tracestate = "";
  private byte[] body = new byte[0];

  private RequestBuilder(String method, String target) {
    int question = target.indexOf('?');
    this.method = Objects.requireNonNull(method, "method");
    this.path = question < 0 ? target : target.substring(0, question);
    this.query = question < 0 ? null : target.substring(question + 1);
  }

  /**
   * Begins a request.
   *
   * @param method its method
   * @param target path and query: {@code "/a?b=c"}
   * @return a builder
   */
  public static RequestBuilder request(String method, String target) {
    return new RequestBuilder(method, target);
  }

  /**
   * Begins a GET request.
   *
   * @param target path and query: {@code "/a?b=c"}
   * @return a builder
   */
  public static RequestBuilder get(String target) {
    return request("GET", target);
  }

  /**
   * Begins a POST request.
   *
   * @param target path and query: {@code "/a?b=c"}
   * @param body the body, sent as UTF-8
   * @return a builder
   */
  public static RequestBuilder post(String target, String body) {
    return request("POST", target).body(body.getBytes(StandardCharsets.UTF_8));
  }

  /**
   * Adds a header line.
   *
   * @param name its name
   * @param value its value, written as UTF-8
   * @return this builder
   */
  public RequestBuilder header(String name, String value) {
    headers.add(Header.of(name, value));
    return this;
  }

  /**
   * Adds a header line.
   *
   * @param name its name
   * @param value its value, any bytes
   * @return this builder
   */
  public RequestBuilder header(String name, byte[] value) {
    headers.add(Header.of(name, value));
    return this;
  }

  /**
   * Sets host and port.
   *
   * @param authority lower case
   * @return this builder
   */
  public RequestBuilder authority(String authority) {
    this.authority = Objects.requireNonNull(authority, "authority");
    return this;
  }

  /**
   * Sets the protocol.
   *
   * @param protocol {@code "HTTP/1.0"}, {@code "HTTP/1.1"} or {@code "HTTP/2.0"}
   * @return this builder
   */
  public RequestBuilder protocol(String protocol) {
    this.protocol = Objects.requireNonNull(protocol, "protocol");
    return this;
  }

  /**
   * Sets the client's end of the connection.
   *
   * @param peer its address
   * @return this builder
   */
  public RequestBuilder peer(Address peer) {
    this.peer = Objects.requireNonNull(peer, "peer");
    return this;
  }

  /**
   * Sets the proxy's end of the connection.
   *
   * @param local its address
   * @return this builder
   */
  public RequestBuilder local(Address local) {
    this.local = Objects.requireNonNull(local, "local");
    return this;
  }

  /**
   * Has the request come by TLS, with the scheme {@code "https"}.
   *
   * @param tls what is known of the connection
   * @return this builder
   */
  public RequestBuilder tls(TlsFacts tls) {
    this.tls = Objects.requireNonNull(tls, "tls");
    this.scheme = "https";
    return this;
  }

  /**
   * Sets the listener's name.
   *
   * @param listener its name
   * @return this builder
   */
  public RequestBuilder listener(String listener) {
    this.listener = Objects.requireNonNull(listener, "listener");
    return this;
  }

  /**
   * Sets the chosen route.
   *
   * @param route the route
   * @return this builder
   */
  public RequestBuilder route(Route route) {
    this.route = Objects.requireNonNull(route, "route");
    return this;
  }

  /**
   * Sets the request's id.
   *
   * @param id the id
   * @return this builder
   */
  public RequestBuilder id(String id) {
    this.id = Objects.requireNonNull(id, "id");
    return this;
  }

  /**
   * Sets the W3C trace context.
   *
   * @param traceparent {@code traceparent}
   * @param tracestate {@code tracestate}, perhaps empty
   * @return this builder
   */
  public RequestBuilder trace(String traceparent, String tracestate) {
    this.traceparent = Objects.requireNonNull(traceparent, "traceparent");
    this.tracestate = Objects.requireNonNull(tracestate, "tracestate");
    return this;
  }

  /**
   * Sets the body.
   *
   * @param body the body, copied
   * @return this builder
   */
  public RequestBuilder body(byte[] body) {
    this.body = body.clone();
    return this;
  }

  /**
   * The request as it is now. It has all its parts; the {@link PluginTester} passes on those that a plugin needs.
   *
   * @return a request
   */
  public Request build() {
    return new Built(
        method,
        scheme,
        authority,
        path,
        query == null ? "" : query,
        query != null,
        protocol,
        Headers.of(headers),
        peer,
        local,
        Optional.ofNullable(tls),
        listener,
        Optional.ofNullable(route),
        id,
        traceparent,
        tracestate,
        body);
  }

  private record Built(
      String method,
      String scheme,
      String authority,
      String path,
      String query,
      boolean hasQuery,
      String protocol,
      Headers headers,
      Address peer,
      Address local,
      Optional<TlsFacts> tls,
      String listener,
      Optional<Route> route,
      String id,
      String traceparent,
      String tracestate,
      byte[] body)
      implements Request {
    @Override
    public byte[] body() {
      return body.clone();
    }
  }
}
