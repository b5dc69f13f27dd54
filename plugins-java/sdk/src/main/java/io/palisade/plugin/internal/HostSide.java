package io.palisade.plugin.internal;

import com.google.protobuf.ByteString;
import com.google.protobuf.ListValue;
import com.google.protobuf.NullValue;
import com.google.protobuf.Struct;
import com.google.protobuf.Value;
import io.grpc.Channel;
import io.grpc.stub.StreamObserver;
import io.palisade.plugin.Address;
import io.palisade.plugin.Certificate;
import io.palisade.plugin.Config;
import io.palisade.plugin.ConfigException.Problem;
import io.palisade.plugin.Decision;
import io.palisade.plugin.HeaderChange;
import io.palisade.plugin.Headers;
import io.palisade.plugin.Reply;
import io.palisade.plugin.Request;
import io.palisade.plugin.ResponseDecision;
import io.palisade.plugin.TlsFacts;
import io.palisade.plugin.v1.CallContext;
import io.palisade.plugin.v1.CertificateBundle;
import io.palisade.plugin.v1.CertificatesGrpc;
import io.palisade.plugin.v1.CheckRequestRequest;
import io.palisade.plugin.v1.CheckRequestResponse;
import io.palisade.plugin.v1.CheckResponseRequest;
import io.palisade.plugin.v1.CheckResponseResponse;
import io.palisade.plugin.v1.ConfigureRequest;
import io.palisade.plugin.v1.Contract;
import io.palisade.plugin.v1.DescribeRequest;
import io.palisade.plugin.v1.DescribeResponse;
import io.palisade.plugin.v1.FilterGrpc;
import io.palisade.plugin.v1.Header;
import io.palisade.plugin.v1.HeaderMutation;
import io.palisade.plugin.v1.LifecycleGrpc;
import io.palisade.plugin.v1.RequestPart;
import io.palisade.plugin.v1.Route;
import io.palisade.plugin.v1.SocketAddress;
import io.palisade.plugin.v1.WatchCertificatesRequest;
import io.palisade.plugin.v1.WatchCertificatesResponse;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;

/**
 * The host's half of the contract, as tests need it. Like the proxy it sends only the parts of a request that the
 * plugin asked for.
 */
public final class HostSide {

  private final Channel channel;
  private final Duration timeout;
  private final DescribeResponse description;
  private String hash = "";
  private int configurations;

  /**
   * Asks a plugin what it is.
   *
   * @param channel leads to the plugin
   * @param timeout how long one call may take
   */
  public HostSide(Channel channel, Duration timeout) {
    this.channel = channel;
    this.timeout = timeout;
    this.description =
        LifecycleGrpc.newBlockingStub(channel)
            .withDeadlineAfter(timeout.toNanos(), TimeUnit.NANOSECONDS)
            .describe(DescribeRequest.newBuilder().setHost("test").build());
  }

  /**
   * Configures the plugin.
   *
   * @param config the configuration
   * @return what is wrong with it; empty if it is in force now
   */
  public List<Problem> configure(Config config) {
    String newHash = "test-" + ++configurations;
    List<Problem> problems =
        LifecycleGrpc.newBlockingStub(channel)
            .withDeadlineAfter(timeout.toNanos(), TimeUnit.NANOSECONDS)
            .configure(
                ConfigureRequest.newBuilder()
                    .setConfig(struct(config.asMap()))
                    .setHash(newHash)
                    .build())
            .getProblemsList()
            .stream()
            .map(problem -> new Problem(problem.getPath(), problem.getMessage()))
            .toList();
    if (problems.isEmpty()) {
      hash = newHash;
    }
    return problems;
  }

  /**
   * Has a request judged.
   *
   * @param request the request
   * @return the plugin's decision
   * @throws IllegalStateException if the plugin has no filter
   * @throws IllegalArgumentException if the body is larger than the plugin judges
   */
  public Decision check(Request request) {
    require(Contract.CONTRACT_FILTER, "filter");
    CheckRequestResponse answer =
        filter()
            .checkRequest(
                CheckRequestRequest.newBuilder()
                    .setContext(context(request))
                    .setRequest(wire(request, false))
                    .build());
    return switch (answer.getVerdictCase()) {
      case ALLOW -> {
        Decision.Allow allow = Decision.allow();
        for (HeaderMutation change : answer.getAllow().getRequestHeadersList()) {
          allow = allow.request(change(change));
        }
        for (HeaderMutation change : answer.getAllow().getResponseHeadersList()) {
          allow = allow.response(change(change));
        }
        yield allow;
      }
      case DENY -> reply(answer.getDeny());
      case VERDICT_NOT_SET -> throw new IllegalStateException("an answer without a verdict");
    };
  }

  /**
   * Has a response judged.
   *
   * @param request the request that it answers
   * @param status its status
   * @param headers its headers
   * @return the plugin's decision
   * @throws IllegalStateException if the plugin has no response filter
   */
  public ResponseDecision checkResponse(Request request, int status, Headers headers) {
    if (!description.getFilter().getResponsePhase()) {
      throw new IllegalStateException("the plugin has no response filter");
    }
    CheckResponseRequest.Builder message =
        CheckResponseRequest.newBuilder()
            .setContext(context(request))
            .setRequest(wire(request, true))
            .setStatus(status);
    headers.forEach(header -> message.addHeaders(header(header)));
    CheckResponseResponse answer = filter().checkResponse(message.build());
    return switch (answer.getVerdictCase()) {
      case PASS -> {
        ResponseDecision.Pass pass = ResponseDecision.pass();
        for (HeaderMutation change : answer.getPass().getHeadersList()) {
          pass = pass.change(change(change));
        }
        yield pass;
      }
      case REPLACE -> reply(answer.getReplace());
      case VERDICT_NOT_SET -> throw new IllegalStateException("an answer without a verdict");
    };
  }

  /**
   * Watches the plugin's certificates for as long as the channel is open.
   *
   * @param changed gets all certificates by name, at first and after each change, one call at a time
   * @throws IllegalStateException if the plugin has no certificates
   */
  public void watchCertificates(Consumer<Map<String, Certificate>> changed) {
    require(Contract.CONTRACT_CERTIFICATES, "certificate loader");
    CertificatesGrpc.newStub(channel)
        .watch(
            WatchCertificatesRequest.newBuilder()
                .setContext(CallContext.newBuilder().setConfigHash(hash))
                .build(),
            new CertificateObserver(changed));
  }

  /** Keeps what a stream of changes adds up to. */
  private static final class CertificateObserver
      implements StreamObserver<WatchCertificatesResponse> {
    private final Consumer<Map<String, Certificate>> changed;
    private final Map<String, Certificate> held = new LinkedHashMap<>();

    CertificateObserver(Consumer<Map<String, Certificate>> changed) {
      this.changed = changed;
    }

    @Override
    public void onNext(WatchCertificatesResponse message) {
      if (message.getComplete()) {
        held.clear();
      }
      message.getRemovedList().forEach(held::remove);
      message.getBundlesList().forEach(bundle -> held.put(bundle.getName(), certificate(bundle)));
      changed.accept(new LinkedHashMap<>(held));
    }

    @Override
    public void onError(Throwable thrown) {
      // The plugin stops, and what is held stays.
    }

    @Override
    public void onCompleted() {
      // As when it stops.
    }
  }

  private void require(Contract contract, String what) {
    if (!description.getContractsList().contains(contract)) {
      throw new IllegalStateException("the plugin has no " + what);
    }
  }

  private FilterGrpc.FilterBlockingStub filter() {
    return FilterGrpc.newBlockingStub(channel)
        .withDeadlineAfter(timeout.toNanos(), TimeUnit.NANOSECONDS);
  }

  private CallContext context(Request request) {
    return CallContext.newBuilder()
        .setRequestId(request.id())
        .setTraceparent(request.traceparent())
        .setTracestate(request.tracestate())
        .setConfigHash(hash)
        .build();
  }

  private boolean sends(RequestPart part) {
    return description.getFilter().getRequestPartsList().contains(part);
  }

  private io.palisade.plugin.v1.Request wire(Request request, boolean responsePhase) {
    io.palisade.plugin.v1.Request.Builder wire =
        io.palisade.plugin.v1.Request.newBuilder()
            .setMethod(request.method())
            .setScheme(request.scheme())
            .setAuthority(request.authority())
            .setPath(request.path())
            .setQuery(request.query())
            .setHasQuery(request.hasQuery())
            .setProtocol(request.protocol())
            .setListener(request.listener());
    if (sends(RequestPart.REQUEST_PART_HEADERS) && !responsePhase) {
      request.headers().forEach(header -> wire.addHeaders(header(header)));
    }
    if (sends(RequestPart.REQUEST_PART_ADDRESSES)) {
      wire.setPeer(address(request.peer())).setLocal(address(request.local()));
    }
    request.tls().ifPresent(facts -> addTls(wire, facts));
    if (sends(RequestPart.REQUEST_PART_ROUTE)) {
      request
          .route()
          .ifPresent(
              route ->
                  wire.setRoute(
                      Route.newBuilder()
                          .setName(route.name())
                          .putAllMetadata(route.metadata())));
    }
    if (sends(RequestPart.REQUEST_PART_BODY) && !responsePhase) {
      byte[] body = request.body();
      long limit = description.getFilter().getMaxBodyBytes();
      if (limit > 0 && body.length > limit) {
        throw new IllegalArgumentException(
            "the body has " + body.length + " bytes and the plugin judges " + limit
                + ": the proxy would answer 413");
      }
      wire.setBody(ByteString.copyFrom(body));
    }
    return wire.build();
  }

  private void addTls(io.palisade.plugin.v1.Request.Builder wire, TlsFacts facts) {
    if (sends(RequestPart.REQUEST_PART_TLS)) {
      wire.getTlsBuilder()
          .setServerName(facts.serverName())
          .setAlpn(facts.alpn())
          .setVersion(facts.version());
    }
    if (sends(RequestPart.REQUEST_PART_PEER_CERTIFICATE)) {
      facts
          .peerCertificates()
          .forEach(der -> wire.getTlsBuilder().addPeerCertificates(ByteString.copyFrom(der)));
    }
  }

  private static io.palisade.plugin.v1.Address address(Address address) {
    io.palisade.plugin.v1.Address.Builder wire = io.palisade.plugin.v1.Address.newBuilder();
    if (address instanceof Address.Ip ip) {
      wire.setSocket(SocketAddress.newBuilder().setIp(ip.ip()).setPort(ip.port()));
    } else if (address instanceof Address.Unix unix && !unix.path().isEmpty()) {
      wire.setUnixPath(unix.path());
    }
    return wire.build();
  }

  private static Header header(io.palisade.plugin.Header header) {
    return Header.newBuilder()
        .setName(header.name())
        .setValue(ByteString.copyFrom(header.bytes()))
        .build();
  }

  private static io.palisade.plugin.Header header(Header header) {
    return io.palisade.plugin.Header.of(header.getName(), header.getValue().toByteArray());
  }

  private static HeaderChange change(HeaderMutation change) {
    return switch (change.getMutationCase()) {
      case SET -> new HeaderChange.Set(header(change.getSet()));
      case APPEND -> new HeaderChange.Add(header(change.getAppend()));
      case REMOVE -> new HeaderChange.Remove(change.getRemove());
      case MUTATION_NOT_SET -> throw new IllegalStateException("a change without a mutation");
    };
  }

  private static Reply reply(io.palisade.plugin.v1.Reply wire) {
    Reply reply = Decision.deny(wire.getStatus(), wire.getBody().toByteArray());
    for (Header header : wire.getHeadersList()) {
      reply = reply.header(header(header));
    }
    return reply;
  }

  private static Certificate certificate(CertificateBundle bundle) {
    return Certificate.of(
            bundle.getCertificateChainPem().toByteArray(), bundle.getPrivateKeyPem().toByteArray())
        .named(bundle.getName())
        .serverNames(bundle.getServerNamesList().toArray(String[]::new));
  }

  private static Struct struct(Map<?, ?> map) {
    Struct.Builder struct = Struct.newBuilder();
    map.forEach((key, value) -> struct.putFields((String) key, value(value)));
    return struct.build();
  }

  private static Value value(Object value) {
    Value.Builder wire = Value.newBuilder();
    if (value instanceof String string) {
      wire.setStringValue(string);
    } else if (value instanceof Number number) {
      wire.setNumberValue(number.doubleValue());
    } else if (value instanceof Boolean bool) {
      wire.setBoolValue(bool);
    } else if (value instanceof List<?> list) {
      ListValue.Builder values = ListValue.newBuilder();
      list.forEach(element -> values.addValues(value(element)));
      wire.setListValue(values);
    } else if (value instanceof Map<?, ?> map) {
      wire.setStructValue(struct(map));
    } else {
      wire.setNullValue(NullValue.NULL_VALUE);
    }
    return wire.build();
  }
}
