package io.palisade.plugin.internal;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.ByteString;
import com.google.protobuf.Empty;
import com.google.protobuf.Struct;
import com.google.protobuf.Value;
import io.grpc.CallOptions;
import io.grpc.ManagedChannel;
import io.grpc.MethodDescriptor;
import io.grpc.Server;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthCheckResponse.ServingStatus;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.inprocess.InProcessChannelBuilder;
import io.grpc.inprocess.InProcessServerBuilder;
import io.grpc.protobuf.ProtoUtils;
import io.grpc.stub.ClientCalls;
import io.palisade.plugin.Certificate;
import io.palisade.plugin.Decision;
import io.palisade.plugin.InternalPlugin;
import io.palisade.plugin.Needs;
import io.palisade.plugin.Plugin;
import io.palisade.plugin.v1.CallContext;
import io.palisade.plugin.v1.CertificatesGrpc;
import io.palisade.plugin.v1.CheckRequestRequest;
import io.palisade.plugin.v1.CheckResponseRequest;
import io.palisade.plugin.v1.ConfigureRequest;
import io.palisade.plugin.v1.ConfigureResponse;
import io.palisade.plugin.v1.Contract;
import io.palisade.plugin.v1.DescribeRequest;
import io.palisade.plugin.v1.DescribeResponse;
import io.palisade.plugin.v1.FilterGrpc;
import io.palisade.plugin.v1.Header;
import io.palisade.plugin.v1.LifecycleGrpc;
import io.palisade.plugin.v1.Request;
import io.palisade.plugin.v1.RequestPart;
import io.palisade.plugin.v1.WatchCertificatesRequest;
import io.palisade.plugin.v1.WatchCertificatesResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Iterator;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

/** The messages themselves, as a host other than ours may send and expect them. */
class ContractTest {

  private final CountDownLatch shutdown = new CountDownLatch(1);
  private PluginServices services;
  private Server server;
  private ManagedChannel channel;

  private void start(Plugin plugin) throws Exception {
    services = new PluginServices(InternalPlugin.definition(plugin), shutdown::countDown);
    String name = InProcessServerBuilder.generateName();
    server = services.server(InProcessServerBuilder.forName(name)).start();
    channel = InProcessChannelBuilder.forName(name).build();
  }

  @AfterEach
  void stop() throws Exception {
    channel.shutdownNow();
    services.stop(server, Duration.ofSeconds(30));
    assertTrue(server.awaitTermination(30, TimeUnit.SECONDS));
  }

  private static Plugin filter() {
    return Plugin.named("test").filter((request, config) -> Decision.allow());
  }

  private ConfigureResponse configure(String hash) {
    return LifecycleGrpc.newBlockingStub(channel)
        .configure(ConfigureRequest.newBuilder().setHash(hash).build());
  }

  private FilterGrpc.FilterBlockingStub filterStub() {
    return FilterGrpc.newBlockingStub(channel).withDeadlineAfter(30, TimeUnit.SECONDS);
  }

  private static CheckRequestRequest check(String hash) {
    return CheckRequestRequest.newBuilder()
        .setContext(CallContext.newBuilder().setConfigHash(hash))
        .setRequest(Request.newBuilder().setMethod("GET").setPath("/"))
        .build();
  }

  private static Status.Code code(Runnable call) {
    return assertThrows(StatusRuntimeException.class, call::run).getStatus().getCode();
  }

  @Test
  void calls_before_configure_are_refused() throws Exception {
    start(
        Plugin.named("test")
            .filter((request, config) -> Decision.allow())
            .response((response, config) -> io.palisade.plugin.ResponseDecision.pass())
            .certificates((request, config) -> null));
    assertEquals(Status.Code.FAILED_PRECONDITION, code(() -> filterStub().checkRequest(check(""))));
    assertEquals(
        Status.Code.FAILED_PRECONDITION,
        code(() -> filterStub().checkResponse(CheckResponseRequest.getDefaultInstance())));
    assertEquals(Status.Code.FAILED_PRECONDITION, code(() -> watch("").next()));
  }

  @Test
  void calls_for_another_configuration_are_refused() throws Exception {
    start(filter());
    configure("h1");
    assertTrue(filterStub().checkRequest(check("h1")).hasAllow());
    assertTrue(filterStub().checkRequest(check("")).hasAllow(), "no hash is no claim");
    assertEquals("h1", filterStub().checkRequest(check("")).getConfigHash());
    assertEquals(Status.Code.FAILED_PRECONDITION, code(() -> filterStub().checkRequest(check("h2"))));
    configure("h2");
    assertTrue(filterStub().checkRequest(check("h2")).hasAllow());
    assertEquals(Status.Code.FAILED_PRECONDITION, code(() -> filterStub().checkRequest(check("h1"))));
  }

  @Test
  void problems_of_a_configuration_have_their_paths() throws Exception {
    start(
        Plugin.named("test")
            .configure(config -> config.section("limits").list("names"))
            .filter((request, config) -> Decision.allow()));
    Value names = Value.newBuilder().setBoolValue(true).build();
    ConfigureResponse response =
        LifecycleGrpc.newBlockingStub(channel)
            .configure(
                ConfigureRequest.newBuilder()
                    .setConfig(
                        Struct.newBuilder()
                            .putFields(
                                "limits",
                                Value.newBuilder()
                                    .setStructValue(Struct.newBuilder().putFields("names", names))
                                    .build()))
                    .setHash("h")
                    .build());
    assertEquals(1, response.getProblemsCount());
    assertEquals("limits.names", response.getProblems(0).getPath());
    assertEquals(
        "expected a list of strings, found the truth value true",
        response.getProblems(0).getMessage());
    assertEquals(Status.Code.FAILED_PRECONDITION, code(() -> filterStub().checkRequest(check(""))));
  }

  @Test
  void describe_says_what_the_plugin_is() throws Exception {
    start(
        Plugin.named("demo")
            .version("1.2")
            .needs(Needs.body(1000))
            .maxConcurrentCalls(7)
            .filter((request, config) -> Decision.allow())
            .certificates((request, config) -> null));
    DescribeResponse before = describe();
    assertEquals("demo", before.getName());
    assertEquals("1.2", before.getVersion());
    assertEquals(7, before.getMaxConcurrentCalls());
    assertEquals(
        List.of(Contract.CONTRACT_FILTER, Contract.CONTRACT_CERTIFICATES),
        before.getContractsList());
    assertEquals(
        List.of(
            RequestPart.REQUEST_PART_HEADERS,
            RequestPart.REQUEST_PART_ADDRESSES,
            RequestPart.REQUEST_PART_TLS,
            RequestPart.REQUEST_PART_ROUTE,
            RequestPart.REQUEST_PART_BODY),
        before.getFilter().getRequestPartsList());
    assertEquals(1000, before.getFilter().getMaxBodyBytes());
    assertFalse(before.getFilter().getResponsePhase());
    configure("h");
    assertEquals(before, describe());
  }

  @Test
  void a_plugin_of_certificates_only_has_no_filter() throws Exception {
    start(Plugin.named("certs").certificates((request, config) -> null));
    assertEquals(List.of(Contract.CONTRACT_CERTIFICATES), describe().getContractsList());
    assertFalse(describe().hasFilter());
    assertEquals(0, describe().getMaxConcurrentCalls());
    configure("h");
    assertEquals(Status.Code.UNIMPLEMENTED, code(() -> filterStub().checkRequest(check("h"))));
  }

  @Test
  void a_phase_that_was_not_described_is_unimplemented() throws Exception {
    start(filter());
    configure("h");
    assertEquals(
        Status.Code.UNIMPLEMENTED,
        code(() -> filterStub().checkResponse(CheckResponseRequest.getDefaultInstance())));
  }

  @Test
  void a_long_message_of_an_exception_is_cut_to_what_a_trailer_can_hold() throws Exception {
    String details = "\u20ac".repeat(100_000);
    start(
        Plugin.named("test")
            .configure(
                config -> {
                  if (config.asMap().containsKey("bad")) {
                    throw new IllegalStateException(details);
                  }
                })
            .filterAsync(
                (request, config) -> {
                  if (request.path().equals("/later")) {
                    return CompletableFuture.failedFuture(new IllegalStateException(details));
                  }
                  throw new IllegalStateException(details);
                })
            .response(
                (response, config) -> {
                  throw new IllegalStateException(details);
                }));
    configure("h");
    CheckRequestRequest later =
        check("h").toBuilder().setRequest(Request.newBuilder().setPath("/later")).build();
    Struct bad = Struct.newBuilder().putFields("bad", Value.getDefaultInstance()).build();
    List<Runnable> calls =
        List.of(
            () -> filterStub().checkRequest(check("h")),
            () -> filterStub().checkRequest(later),
            () -> filterStub().checkResponse(CheckResponseRequest.getDefaultInstance()),
            () ->
                LifecycleGrpc.newBlockingStub(channel)
                    .configure(ConfigureRequest.newBuilder().setConfig(bad).build()));
    for (Runnable call : calls) {
      Status status = assertThrows(StatusRuntimeException.class, call::run).getStatus();
      assertEquals(Status.Code.INTERNAL, status.getCode());
      String text = status.getDescription();
      assertTrue(text.contains("java.lang.IllegalStateException: \u20ac"), text);
      assertEquals(500, text.length());
    }
  }

  @Test
  void a_call_that_is_given_up_makes_room_and_ends_no_other_that_waits_for_the_same() throws Exception {
    CompletableFuture<Decision> shared = new CompletableFuture<>();
    CountDownLatch begun = new CountDownLatch(1);
    start(
        Plugin.named("test")
            .maxConcurrentCalls(1)
            .filterAsync(
                (request, config) -> {
                  begun.countDown();
                  return shared;
                }));
    configure("h");
    var given = FilterGrpc.newFutureStub(channel).checkRequest(check("h"));
    assertTrue(begun.await(30, TimeUnit.SECONDS));
    given.cancel(true);
    // The plugin hears of it a little later. Then the place is free, and calls wait for a verdict.
    Status.Code code = Status.Code.RESOURCE_EXHAUSTED;
    while (code == Status.Code.RESOURCE_EXHAUSTED) {
      code = code(() -> filterStub().withDeadlineAfter(1, TimeUnit.SECONDS).checkRequest(check("h")));
    }
    assertEquals(Status.Code.DEADLINE_EXCEEDED, code);
    assertFalse(shared.isDone());
  }

  @Test
  void health_knows_the_name_that_hosts_ask_for() throws Exception {
    start(filter());
    for (String service : List.of("", "plugin")) {
      assertEquals(
          ServingStatus.SERVING,
          HealthGrpc.newBlockingStub(channel)
              .check(HealthCheckRequest.newBuilder().setService(service).build())
              .getStatus());
    }
  }

  @Test
  void shutdown_is_answered_and_obeyed() throws Exception {
    start(filter());
    MethodDescriptor<Empty, Empty> method =
        MethodDescriptor.<Empty, Empty>newBuilder()
            .setType(MethodDescriptor.MethodType.UNARY)
            .setFullMethodName("plugin.GRPCController/Shutdown")
            .setRequestMarshaller(ProtoUtils.marshaller(Empty.getDefaultInstance()))
            .setResponseMarshaller(ProtoUtils.marshaller(Empty.getDefaultInstance()))
            .build();
    ClientCalls.blockingUnaryCall(channel, method, CallOptions.DEFAULT, Empty.getDefaultInstance());
    assertTrue(shutdown.await(30, TimeUnit.SECONDS));
  }

  @Test
  void large_messages_are_taken_up_to_16_mebibytes() throws Exception {
    start(
        Plugin.named("test")
            .needs(Needs.body(0))
            .filter((request, config) -> Decision.deny(413, "" + request.body().length)));
    configure("h");
    int size = 15 << 20;
    CheckRequestRequest large =
        check("h").toBuilder()
            .setRequest(Request.newBuilder().setBody(ByteString.copyFrom(new byte[size])))
            .build();
    assertEquals("" + size, filterStub().checkRequest(large).getDeny().getBody().toStringUtf8());
  }

  @Test
  void a_value_that_is_not_utf8_arrives_byte_by_byte() throws Exception {
    start(
        Plugin.named("test")
            .filter(
                (request, config) ->
                    Decision.deny(403, request.headers().list().get(0).bytes())));
    configure("h");
    ByteString value = ByteString.copyFrom(new byte[] {(byte) 0xff, (byte) 0xfe, 'a'});
    CheckRequestRequest message =
        check("h").toBuilder()
            .setRequest(Request.newBuilder().addHeaders(Header.newBuilder().setName("x").setValue(value)))
            .build();
    assertEquals(value, filterStub().checkRequest(message).getDeny().getBody());
  }

  @Test
  void a_call_in_flight_ends_before_the_server_does_and_streams_do_not_hold_it_up() throws Exception {
    CountDownLatch entered = new CountDownLatch(1);
    CountDownLatch release = new CountDownLatch(1);
    start(
        Plugin.named("test")
            .filter(
                (request, config) -> {
                  entered.countDown();
                  release.await();
                  return Decision.allow();
                }));
    configure("h");
    Iterator<io.grpc.health.v1.HealthCheckResponse> health =
        HealthGrpc.newBlockingStub(channel).watch(HealthCheckRequest.getDefaultInstance());
    assertEquals(ServingStatus.SERVING, health.next().getStatus());
    var call = FilterGrpc.newFutureStub(channel).checkRequest(check("h"));
    assertTrue(entered.await(30, TimeUnit.SECONDS));
    Thread stopping =
        new Thread(
            () -> {
              try {
                services.stop(server, Duration.ofMinutes(1));
              } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
              }
            });
    stopping.start();
    assertEquals(ServingStatus.NOT_SERVING, health.next().getStatus());
    release.countDown();
    assertTrue(call.get(30, TimeUnit.SECONDS).hasAllow());
    stopping.join(30_000);
    assertFalse(stopping.isAlive());
  }

  @Test
  void a_watch_gets_everything_first_and_then_what_differs() throws Exception {
    AtomicReference<List<Certificate>> held = new AtomicReference<>(List.of(cert("a", 1), cert("b", 1)));
    Plugin plugin =
        Plugin.named("certs")
            .refreshEvery(Duration.ofDays(1))
            .certificateSet((request, config) -> held.get());
    start(plugin);
    configure("h");
    Iterator<WatchCertificatesResponse> all = watch("h");
    Iterator<WatchCertificatesResponse> onlyB = watch("h", "b", "missing");
    WatchCertificatesResponse first = all.next();
    assertTrue(first.getComplete());
    assertEquals(List.of("a", "b"), names(first));
    assertEquals(List.of("b"), names(onlyB.next()));

    held.set(List.of(cert("a", 2), cert("b", 1)));
    plugin.reloadCertificates();
    WatchCertificatesResponse second = all.next();
    assertFalse(second.getComplete());
    assertEquals(List.of("a"), names(second));
    assertTrue(second.getBundles(0).getPrivateKeyPem().toStringUtf8().contains("2"));

    held.set(List.of(cert("a", 2)));
    plugin.reloadCertificates();
    WatchCertificatesResponse third = all.next();
    assertEquals(List.of("b"), third.getRemovedList());
    assertEquals(0, third.getBundlesCount());
    WatchCertificatesResponse secondOfB = onlyB.next();
    assertEquals(List.of("b"), secondOfB.getRemovedList(), "the change of a was none of its business");
  }

  @Test
  void a_stopping_plugin_ends_the_watch() throws Exception {
    start(Plugin.named("certs").certificates((request, config) -> cert("a", 1)));
    configure("h");
    Iterator<WatchCertificatesResponse> watch = watch("h");
    watch.next();
    services.stop(server, Duration.ofSeconds(30));
    assertEquals(Status.Code.UNAVAILABLE, code(watch::next));
  }

  private DescribeResponse describe() {
    return LifecycleGrpc.newBlockingStub(channel)
        .describe(DescribeRequest.newBuilder().setHost("palisade/0.0.0").build());
  }

  private Iterator<WatchCertificatesResponse> watch(String hash, String... names) {
    return CertificatesGrpc.newBlockingStub(channel)
        .withDeadlineAfter(30, TimeUnit.SECONDS)
        .watch(
            WatchCertificatesRequest.newBuilder()
                .setContext(CallContext.newBuilder().setConfigHash(hash))
                .addAllNames(List.of(names))
                .build());
  }

  private static List<String> names(WatchCertificatesResponse response) {
    return response.getBundlesList().stream().map(bundle -> bundle.getName()).toList();
  }

  private static Certificate cert(String name, int version) {
    return Certificate.of(
            "-----BEGIN CERTIFICATE-----\n".getBytes(StandardCharsets.US_ASCII),
            ("-----BEGIN PRIVATE KEY-----\n" + version).getBytes(StandardCharsets.US_ASCII))
        .named(name);
  }
}
