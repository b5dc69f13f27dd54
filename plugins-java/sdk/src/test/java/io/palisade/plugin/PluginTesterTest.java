package io.palisade.plugin;

import static io.palisade.plugin.Decision.allow;
import static io.palisade.plugin.Decision.deny;
import static io.palisade.plugin.ResponseDecision.pass;
import static io.palisade.plugin.ResponseDecision.replace;
import static io.palisade.plugin.testing.RequestBuilder.get;
import static io.palisade.plugin.testing.RequestBuilder.post;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.palisade.plugin.testing.CallFailedException;
import io.palisade.plugin.testing.PluginTester;
import io.palisade.plugin.testing.RequestBuilder;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.security.cert.CertificateFactory;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.Test;

class PluginTesterTest {

  private static CallFailedException failure(RequestFilter filter) {
    try (PluginTester tester = PluginTester.of(Plugin.named("test").filter(filter))) {
      return assertThrows(CallFailedException.class, () -> tester.check(get("/")));
    }
  }

  private static CallFailedException asyncFailure(AsyncRequestFilter filter) {
    try (PluginTester tester = PluginTester.of(Plugin.named("test").filterAsync(filter))) {
      return assertThrows(CallFailedException.class, () -> tester.check(get("/")));
    }
  }

  // What goes wrong.

  @Test
  void a_filter_that_throws_fails_the_call() {
    CallFailedException thrown =
        failure(
            (request, config) -> {
              throw new IllegalStateException("database is gone");
            });
    assertEquals("INTERNAL", thrown.code());
    assertTrue(thrown.getMessage().contains("database is gone"), thrown.getMessage());
  }

  @Test
  void a_filter_that_runs_out_of_stack_fails_the_call() {
    assertEquals(
        "INTERNAL",
        failure(
                (request, config) -> {
                  throw new StackOverflowError();
                })
            .code());
  }

  @Test
  void a_filter_that_returns_null_fails_the_call() {
    assertEquals("INTERNAL", failure((request, config) -> null).code());
  }

  @Test
  void an_asynchronous_filter_fails_the_call_in_each_of_its_ways() {
    assertEquals("INTERNAL", asyncFailure((request, config) -> null).code());
    assertEquals(
        "INTERNAL", asyncFailure((request, config) -> CompletableFuture.completedFuture(null)).code());
    CallFailedException thrown =
        asyncFailure(
            (request, config) ->
                CompletableFuture.supplyAsync(
                    () -> {
                      throw new IllegalStateException("later");
                    }));
    assertEquals("INTERNAL", thrown.code());
    assertTrue(thrown.getMessage().contains("IllegalStateException: later"), thrown.getMessage());
  }

  @Test
  void a_wrong_configuration_value_fails_the_call_that_reads_it() {
    CallFailedException thrown =
        failure((request, config) -> config.list("allow").contains("x") ? allow() : deny(403));
    assertTrue(thrown.getMessage().contains("allow: expected a list of strings, found nothing"), thrown.getMessage());
  }

  @Test
  void a_part_that_was_not_sent_is_not_taken_for_one_that_is_not_there() {
    List<RequestFilter> filters =
        List.of(
            (request, config) -> request.header("authorization") == null ? allow() : deny(403),
            (request, config) -> request.peer() == null ? allow() : deny(403),
            (request, config) -> request.local() == null ? allow() : deny(403),
            (request, config) -> request.tls().isEmpty() ? allow() : deny(403),
            (request, config) -> request.body().length == 0 ? allow() : deny(403));
    for (RequestFilter filter : filters) {
      Plugin plugin = Plugin.named("test").filter(filter).needs(Needs.only(Needs.Part.ROUTE));
      try (PluginTester tester = PluginTester.of(plugin)) {
        CallFailedException thrown =
            assertThrows(CallFailedException.class, () -> tester.check(get("/")));
        assertTrue(thrown.getMessage().contains("the host was not asked for"), thrown.getMessage());
      }
    }
  }

  @Test
  void a_refused_configuration_leaves_the_old_one_in_force() {
    Plugin plugin =
        Plugin.named("test")
            .configure(
                config -> {
                  if (config.integer("limit") < 0) {
                    throw new ConfigException("limit", "must not be negative");
                  }
                })
            .filter((request, config) -> deny(400, "limit " + config.integer("limit")));
    ConfigException atStart =
        assertThrows(ConfigException.class, () -> PluginTester.of(plugin, Map.of("limit", "x")));
    assertEquals("limit: expected a whole number, found a string", atStart.getMessage());
    try (PluginTester tester = PluginTester.of(plugin, Map.of("limit", 1))) {
      ConfigException refused =
          assertThrows(ConfigException.class, () -> tester.configure(Map.of("limit", -1)));
      assertEquals(
          List.of(new ConfigException.Problem("limit", "must not be negative")), refused.problems());
      assertEquals(deny(400, "limit 1"), tester.check(get("/")));
      tester.configure(Map.of("limit", 2));
      assertEquals(deny(400, "limit 2"), tester.check(get("/")));
    }
  }

  @Test
  void a_configuration_hook_that_breaks_is_a_failure_and_no_verdict_on_the_configuration() {
    Plugin plugin =
        Plugin.named("test")
            .configure(
                config -> {
                  throw new IOException("disk");
                })
            .filter((request, config) -> allow());
    assertEquals(
        "INTERNAL",
        assertThrows(CallFailedException.class, () -> PluginTester.of(plugin)).code());
  }

  @Test
  void a_plugin_that_does_nothing_says_so() {
    assertThrows(IllegalStateException.class, () -> PluginTester.of(Plugin.named("idle")));
  }

  @Test
  void more_calls_than_the_plugin_works_on_are_turned_away() throws Exception {
    CountDownLatch entered = new CountDownLatch(1);
    CountDownLatch release = new CountDownLatch(1);
    Plugin plugin =
        Plugin.named("test")
            .maxConcurrentCalls(1)
            .filter(
                (request, config) -> {
                  entered.countDown();
                  release.await();
                  return allow();
                });
    try (PluginTester tester = PluginTester.of(plugin)) {
      CompletableFuture<Decision> first =
          CompletableFuture.supplyAsync(() -> tester.check(get("/first")));
      assertTrue(entered.await(30, TimeUnit.SECONDS));
      CallFailedException second =
          assertThrows(CallFailedException.class, () -> tester.check(get("/second")));
      assertEquals("RESOURCE_EXHAUSTED", second.code());
      release.countDown();
      assertEquals(allow(), first.get(30, TimeUnit.SECONDS));
      assertEquals(allow(), tester.check(get("/third")));
    }
  }

  // What goes right.

  @Test
  void the_first_value_is_the_header_and_all_of_them_are_there() {
    AtomicReference<Request> seen = new AtomicReference<>();
    byte[] latin1 = {'j', (byte) 0xfc, 'r', 'g'};
    Plugin plugin =
        Plugin.named("test")
            .filter(
                (request, config) -> {
                  seen.set(request);
                  return allow();
                });
    try (PluginTester tester = PluginTester.of(plugin)) {
      tester.check(
          get("/")
              .header("X-User", "admin")
              .header("cookie", "a=1")
              .header("x-user", "guest")
              .header("x-raw", latin1));
    }
    Request request = seen.get();
    assertEquals("admin", request.header("X-USER"));
    assertEquals(List.of("admin", "guest"), request.headers().all("x-user"));
    assertEquals(
        List.of("x-user", "cookie", "x-user", "x-raw"),
        request.headers().list().stream().map(Header::name).toList());
    assertArrayEquals(latin1, request.headers().list().get(3).bytes());
    assertEquals("j\ufffdrg", request.header("x-raw"));
    assertEquals(null, request.header("x-missing"));
  }

  @Test
  void a_filter_sees_everything_that_it_needs() throws Exception {
    AtomicReference<Request> seen = new AtomicReference<>();
    Plugin plugin =
        Plugin.named("test")
            .needs(Needs.body(5).with(Needs.Part.PEER_CERTIFICATE))
            .filter(
                (request, config) -> {
                  seen.set(request);
                  return allow();
                });
    byte[] der;
    try (InputStream pem = getClass().getResourceAsStream("/pem/one.cert.pem")) {
      der = CertificateFactory.getInstance("X.509").generateCertificate(pem).getEncoded();
    }
    try (PluginTester tester = PluginTester.of(plugin)) {
      tester.check(
          post("/a%20b?q=1", "hello")
              .authority("a.example:8443")
              .protocol("HTTP/2.0")
              .peer(new Address.Ip("::1", 5))
              .local(new Address.Unix("/run/p.sock"))
              .tls(TlsFacts.of("a.example", "h2", "TLSv1.3", List.of(der)))
              .listener("public")
              .route(new Route("api", Map.of("team", "core")))
              .id("r-1")
              .trace("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "k=v"));
      assertThrows(
          IllegalArgumentException.class, () -> tester.check(post("/", "longer")), "413");
    }
    Request request = seen.get();
    assertEquals("POST", request.method());
    assertEquals("https", request.scheme());
    assertEquals("a.example:8443", request.authority());
    assertEquals("/a%20b", request.path());
    assertEquals("q=1", request.query());
    assertTrue(request.hasQuery());
    assertEquals("HTTP/2.0", request.protocol());
    assertEquals("[::1]:5", request.peer().toString());
    assertEquals(new Address.Unix("/run/p.sock"), request.local());
    TlsFacts tls = request.tls().orElseThrow();
    assertEquals("a.example", tls.serverName());
    assertEquals("h2", tls.alpn());
    assertEquals("TLSv1.3", tls.version());
    assertArrayEquals(der, tls.peerCertificates().get(0));
    assertEquals("CN=one.test", tls.peerX509Certificates().get(0).getSubjectX500Principal().getName());
    assertEquals("public", request.listener());
    assertEquals(Optional.of(new Route("api", Map.of("team", "core"))), request.route());
    assertEquals("r-1", request.id());
    assertTrue(request.traceparent().startsWith("00-4bf9"));
    assertEquals("k=v", request.tracestate());
    assertEquals("hello", new String(request.body(), StandardCharsets.UTF_8));
  }

  @Test
  void decisions_reach_the_host_as_they_are() {
    Decision.Allow changes =
        allow()
            .setHeader("x-auth", "ok")
            .addHeader("x-tag", "a")
            .removeHeader("cookie")
            .request(new HeaderChange.Set(Header.of("x-raw", new byte[] {(byte) 0xff})))
            .responseHeader("x-frame-options", "DENY")
            .addResponseHeader("set-cookie", "a=1")
            .removeResponseHeader("server");
    Reply denial = deny(403, "who are you?").header("www-authenticate", "Basic").header("x", "1").header("x", "2");
    Plugin plugin =
        Plugin.named("test")
            .filterAsync(
                (request, config) ->
                    CompletableFuture.supplyAsync(
                        () -> request.path().equals("/") ? changes : denial));
    try (PluginTester tester = PluginTester.of(plugin)) {
      assertEquals(changes, tester.check(get("/")));
      assertEquals(denial, tester.check(get("/other")));
    }
  }

  @Test
  void responses_are_judged_without_the_headers_of_their_request() {
    Plugin plugin =
        Plugin.named("test")
            .response(
                (response, config) ->
                    switch (response.request().path()) {
                      case "/headers" -> pass().setHeader("x", response.request().header("x"));
                      case "/hide" -> replace(502, "sorry");
                      default -> pass().setHeader("x-status", response.status() + " " + response.header("server"));
                    });
    try (PluginTester tester = PluginTester.of(plugin)) {
      assertEquals(
          pass().setHeader("x-status", "200 nginx"),
          tester.checkResponse(get("/"), 200, Header.of("Server", "nginx")));
      assertEquals(replace(502, "sorry"), tester.checkResponse(get("/hide"), 500));
      assertEquals(
          "INTERNAL",
          assertThrows(
                  CallFailedException.class,
                  () -> tester.checkResponse(RequestBuilder.get("/headers"), 200))
              .code());
      assertEquals(allow(), tester.check(get("/")));
    }
  }
}
