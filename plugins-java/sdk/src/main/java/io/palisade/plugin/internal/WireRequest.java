package io.palisade.plugin.internal;

import io.palisade.plugin.Address;
import io.palisade.plugin.Headers;
import io.palisade.plugin.Needs;
import io.palisade.plugin.Request;
import io.palisade.plugin.Route;
import io.palisade.plugin.TlsFacts;
import io.palisade.plugin.v1.CallContext;
import java.util.Optional;
import java.util.Set;

/** A request as it came from the host. Knows what the host was asked to send. */
final class WireRequest implements Request {

  private final CallContext context;
  private final io.palisade.plugin.v1.Request wire;
  private final Set<Needs.Part> parts;
  private final boolean responsePhase;
  private Headers headers; // Made at first use; a race makes equal ones twice.

  WireRequest(
      CallContext context,
      io.palisade.plugin.v1.Request wire,
      Set<Needs.Part> parts,
      boolean responsePhase) {
    this.context = context;
    this.wire = wire;
    this.parts = parts;
    this.responsePhase = responsePhase;
  }

  @Override
  public String method() {
    return wire.getMethod();
  }

  @Override
  public String scheme() {
    return wire.getScheme();
  }

  @Override
  public String authority() {
    return wire.getAuthority();
  }

  @Override
  public String path() {
    return wire.getPath();
  }

  @Override
  public String query() {
    return wire.getQuery();
  }

  @Override
  public boolean hasQuery() {
    return wire.getHasQuery();
  }

  @Override
  public String protocol() {
    return wire.getProtocol();
  }

  @Override
  public Headers headers() {
    requireRequestPhase("headers");
    require(Needs.Part.HEADERS);
    Headers made = headers;
    if (made == null) {
      made = Wire.headers(wire.getHeadersList());
      headers = made;
    }
    return made;
  }

  @Override
  public Address peer() {
    require(Needs.Part.ADDRESSES);
    return Wire.address(wire.getPeer());
  }

  @Override
  public Address local() {
    require(Needs.Part.ADDRESSES);
    return Wire.address(wire.getLocal());
  }

  @Override
  public Optional<TlsFacts> tls() {
    if (!parts.contains(Needs.Part.PEER_CERTIFICATE)) {
      require(Needs.Part.TLS);
    }
    return wire.hasTls() ? Optional.of(Wire.tls(wire.getTls())) : Optional.empty();
  }

  @Override
  public String listener() {
    return wire.getListener();
  }

  @Override
  public Optional<Route> route() {
    require(Needs.Part.ROUTE);
    return wire.hasRoute()
        ? Optional.of(new Route(wire.getRoute().getName(), wire.getRoute().getMetadataMap()))
        : Optional.empty();
  }

  @Override
  public String id() {
    return context.getRequestId();
  }

  @Override
  public String traceparent() {
    return context.getTraceparent();
  }

  @Override
  public String tracestate() {
    return context.getTracestate();
  }

  @Override
  public byte[] body() {
    requireRequestPhase("body");
    require(Needs.Part.BODY);
    if (!wire.hasBody()) {
      throw new IllegalStateException("the host did not send the body that the plugin needs");
    }
    return wire.getBody().toByteArray();
  }

  @Override
  public String toString() {
    return "Request[" + id() + ", " + method() + " " + path() + "]";
  }

  private void require(Needs.Part part) {
    if (!parts.contains(part)) {
      throw new IllegalStateException(
          "the host was not asked for " + part + ": say so with Plugin.needs(...)");
    }
  }

  private void requireRequestPhase(String part) {
    if (responsePhase) {
      throw new IllegalStateException("a response comes without the " + part + " of its request");
    }
  }
}
