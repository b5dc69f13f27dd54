package io.palisade.plugin.internal;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.ManagedChannel;
import io.grpc.Server;
import io.grpc.inprocess.InProcessChannelBuilder;
import io.grpc.inprocess.InProcessServerBuilder;
import io.grpc.stub.StreamObserver;
import io.palisade.plugin.Decision;
import io.palisade.plugin.InternalPlugin;
import io.palisade.plugin.Plugin;
import io.palisade.plugin.ResponseDecision;
import io.palisade.plugin.v1.CheckAnswer;
import io.palisade.plugin.v1.CheckBatch;
import io.palisade.plugin.v1.CheckBatchAnswer;
import io.palisade.plugin.v1.CheckCall;
import io.palisade.plugin.v1.CheckRequestRequest;
import io.palisade.plugin.v1.CheckRequestResponse;
import io.palisade.plugin.v1.CheckResponseRequest;
import io.palisade.plugin.v1.CheckResponseResponse;
import io.palisade.plugin.v1.ConfigureRequest;
import io.palisade.plugin.v1.FilterGrpc;
import io.palisade.plugin.v1.LifecycleGrpc;
import io.palisade.plugin.v1.Reply;
import io.palisade.plugin.v1.Request;
import java.lang.ref.WeakReference;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.Queue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.logging.Handler;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

/** Many calls in one message. */
class BatchesTest {

  private PluginServices services;
  private Server server;
  private ManagedChannel channel;
  private StreamObserver<CheckBatch> batches;
  private final LinkedBlockingQueue<CheckBatchAnswer> messages = new LinkedBlockingQueue<>();
  private final CompletableFuture<Throwable> end = new CompletableFuture<>();
  private int taken;
  /** Of the configurations that answers have come of. */
  private final java.util.Set<String> hashes = new java.util.HashSet<>();

  private void start(Plugin plugin) throws Exception {
    services = new PluginServices(InternalPlugin.definition(plugin), () -> {});
    String name = InProcessServerBuilder.generateName();
    server = services.server(InProcessServerBuilder.forName(name)).start();
    channel = InProcessChannelBuilder.forName(name).build();
    LifecycleGrpc.newBlockingStub(channel)
        .configure(ConfigureRequest.newBuilder().setHash("1").build());
    batches =
        FilterGrpc.newStub(channel)
            .checkBatches(
                new StreamObserver<>() {
                  @Override
                  public void onNext(CheckBatchAnswer message) {
                    messages.add(message);
                  }

                  @Override
                  public void onError(Throwable thrown) {
                    end.complete(thrown);
                  }

                  @Override
                  public void onCompleted() {
                    end.complete(null);
                  }
                });
  }

  @AfterEach
  void stop() throws Exception {
    channel.shutdownNow();
    services.stop(server, Duration.ofSeconds(30));
  }

  private static CheckCall call(long id, String path) {
    return CheckCall.newBuilder()
        .setId(id)
        .setTimeoutMicros(TimeUnit.SECONDS.toMicros(30))
        .setRequest(
            CheckRequestRequest.newBuilder().setRequest(Request.newBuilder().setPath(path)))
        .build();
  }

  private static CheckCall responseCall(long id, String path) {
    return CheckCall.newBuilder()
        .setId(id)
        .setTimeoutMicros(TimeUnit.SECONDS.toMicros(30))
        .setResponse(
            CheckResponseRequest.newBuilder().setRequest(Request.newBuilder().setPath(path)))
        .build();
  }

  private void send(String hash, CheckCall... calls) {
    batches.onNext(
        CheckBatch.newBuilder().setConfigHash(hash).addAllCalls(java.util.List.of(calls)).build());
  }

  private Map<Long, CheckAnswer> answers(int count) throws Exception {
    Map<Long, CheckAnswer> got = new HashMap<>();
    while (got.size() < count) {
      CheckBatchAnswer message = messages.poll(30, TimeUnit.SECONDS);
      taken += message.getTaken();
      if (message.getAnswersCount() > 0) {
        hashes.add(message.getConfigHash());
      }
      for (CheckAnswer answer : message.getAnswersList()) {
        assertNull(got.put(answer.getId(), answer), "answered twice");
      }
    }
    return got;
  }

  @Test
  void every_call_is_answered_once() throws Exception {
    start(
        Plugin.named("test")
            .filter(
                (request, config) -> {
                  if (request.path().equals("/throw")) {
                    throw new IllegalStateException("x".repeat(100_000));
                  }
                  return request.path().equals("/") ? Decision.allow() : Decision.deny(403, "no");
                }));
    send("1", call(1, "/"), call(2, "/no"), call(3, "/throw"), CheckCall.newBuilder().setId(4).build());
    Map<Long, CheckAnswer> got = answers(4);
    assertTrue(got.get(1L).getRequest().hasAllow());
    assertEquals(403, got.get(2L).getRequest().getDeny().getStatus());
    assertEquals(13, got.get(3L).getError().getCode());
    assertEquals(500, got.get(3L).getError().getMessage().length());
    assertEquals(12, got.get(4L).getError().getCode());
    assertEquals(1, taken);
    // Errors are no verdicts: alone in a message, they name no configuration.
    hashes.remove("");
    assertEquals(java.util.Set.of("1"), hashes);
    hashes.clear();
    send("other", call(5, "/"));
    assertEquals(9, answers(1).get(5L).getError().getCode());
    assertEquals(java.util.Set.of(""), hashes);
    batches.onCompleted();
    assertNull(end.get(30, TimeUnit.SECONDS));
  }

  @Test
  void of_answers_that_are_too_large_a_denial_stays_one_and_others_are_errors() throws Exception {
    String large = "x".repeat(1_200_000);
    start(
        Plugin.named("test")
            .filter(
                (request, config) ->
                    request.path().equals("/no")
                        ? Decision.deny(403, "no").header("x-large", large)
                        : Decision.allow().setHeader("x-large", large))
            .response(
                (response, config) ->
                    response.request().path().equals("/no")
                        ? ResponseDecision.replace(403, "no").header("x-large", large)
                        : ResponseDecision.pass().setHeader("x-large", large)));
    try (Log log = new Log()) {
      send("1", call(1, "/no"), responseCall(2, "/no"));
      Map<Long, CheckAnswer> got = answers(2);
      assertEquals(
          CheckRequestResponse.newBuilder().setDeny(Reply.getDefaultInstance()).build(),
          got.get(1L).getRequest());
      assertEquals(
          CheckResponseResponse.newBuilder().setReplace(Reply.getDefaultInstance()).build(),
          got.get(2L).getResponse());
      // They are verdicts.
      assertEquals(java.util.Set.of("1"), hashes);
      send("1", call(3, "/"), responseCall(4, "/"));
      got = answers(2);
      assertEquals(13, got.get(3L).getError().getCode());
      assertEquals(13, got.get(4L).getError().getCode());
      assertEquals(4, log.messages.size(), () -> "" + log.messages);
      assertTrue(log.messages.stream().allMatch(message -> message.startsWith("an answer of 12000")));
    }
  }

  @Test
  @SuppressWarnings("try")
  void a_failure_that_can_not_be_read_or_logged_is_answered_and_makes_room() throws Exception {
    start(
        Plugin.named("test")
            .maxConcurrentCalls(1)
            .filterAsync(
                (request, config) -> CompletableFuture.failedFuture(new FailuresTest.Unreadable())));
    try (FailuresTest.BrokenLog log = new FailuresTest.BrokenLog()) {
      send("", call(1, "/"), call(2, "/"));
      for (CheckAnswer answer : answers(2).values()) {
        assertEquals(13, answer.getError().getCode());
      }
    }
  }

  /** What batches log. */
  static final class Log extends Handler implements AutoCloseable {
    private final Logger logger = Logger.getLogger(Batches.class.getName());
    final Queue<String> messages = new ConcurrentLinkedQueue<>();

    Log() {
      logger.addHandler(this);
    }

    @Override
    public void publish(LogRecord record) {
      messages.add(record.getMessage());
    }

    @Override
    public void flush() {}

    @Override
    public void close() {
      logger.removeHandler(this);
    }
  }

  @Test
  void an_answer_and_what_is_taken_come_in_one_message() throws Exception {
    start(Plugin.named("test").filter((request, config) -> Decision.allow()));
    int together = 0;
    for (int id = 1; id <= 30; id++) {
      int before = taken;
      send("1", call(id, "/"));
      CheckBatchAnswer message = messages.poll(30, TimeUnit.SECONDS);
      together += message.getAnswersCount() == 1 && message.getTaken() == 1 ? 1 : 0;
      messages.add(message);
      answers(1);
      while (taken == before) {
        taken += messages.poll(30, TimeUnit.SECONDS).getTaken();
      }
    }
    // Where a thread does not come to run for a millisecond, what is taken is told before.
    assertTrue(together > 15, together + " of 30");
  }

  @Test
  void a_call_that_blocks_holds_up_no_other() throws Exception {
    CountDownLatch go = new CountDownLatch(1);
    start(
        Plugin.named("test")
            .filter(
                (request, config) -> {
                  if (request.path().equals("/wait")) {
                    go.await();
                  } else if (request.path().equals("/go")) {
                    go.countDown();
                  }
                  return Decision.allow();
                }));
    send("", call(1, "/wait"), call(2, "/"), call(3, "/wait"));
    assertTrue(answers(1).get(2L).getRequest().hasAllow());
    send("", call(4, "/go"));
    assertEquals(3, answers(3).size());
    assertEquals(2, taken);
  }

  @Test
  void a_thread_that_a_filter_leaves_interrupted_is_not_so_for_the_next_call() throws Exception {
    start(
        Plugin.named("test")
            .filter(
                (request, config) -> {
                  if (Thread.currentThread().isInterrupted()) {
                    return Decision.deny(500, "interrupted");
                  }
                  Thread.currentThread().interrupt();
                  return Decision.allow();
                }));
    CheckCall[] calls = new CheckCall[50];
    for (int i = 0; i < calls.length; i++) {
      calls[i] = call(i, "/");
    }
    send("", calls);
    for (CheckAnswer answer : answers(calls.length).values()) {
      assertTrue(answer.getRequest().hasAllow(), "" + answer);
    }
  }

  @Test
  void a_call_that_is_over_ends_no_other_that_waits_for_the_same() throws Exception {
    CompletableFuture<Decision> shared = new CompletableFuture<>();
    start(Plugin.named("test").maxConcurrentCalls(2).filterAsync((request, config) -> shared));
    CheckCall brief = call(1, "/").toBuilder().setTimeoutMicros(1).build();
    send("", brief, call(2, "/"));
    assertEquals(4, answers(1).get(1L).getError().getCode());
    // It has made room.
    send("", brief.toBuilder().setId(3).build());
    assertEquals(4, answers(1).get(3L).getError().getCode());
    shared.complete(Decision.allow());
    assertTrue(answers(1).get(2L).getRequest().hasAllow());
  }

  @Test
  void a_verdict_is_not_kept_until_the_call_would_be_over() throws Exception {
    Queue<CompletableFuture<Decision>> verdicts = new ConcurrentLinkedQueue<>();
    start(
        Plugin.named("test")
            .filterAsync(
                (request, config) -> {
                  CompletableFuture<Decision> verdict = new CompletableFuture<>();
                  verdicts.add(verdict);
                  return verdict;
                }));
    send("", call(1, "/").toBuilder().setTimeoutMicros(TimeUnit.DAYS.toMicros(1)).build());
    CompletableFuture<Decision> verdict = null;
    while (verdict == null) {
      verdict = verdicts.poll();
    }
    WeakReference<Decision> decision = new WeakReference<>(Decision.deny(403, "no"));
    verdict.complete(decision.get());
    verdict = null;
    assertEquals(403, answers(1).get(1L).getRequest().getDeny().getStatus());
    long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(30);
    while (decision.get() != null) {
      assertTrue(System.nanoTime() < deadline, "the verdict is still there");
      System.gc();
    }
  }

  @Test
  void an_answer_names_the_configuration_that_it_comes_of() throws Exception {
    CountDownLatch begun = new CountDownLatch(1);
    CountDownLatch go = new CountDownLatch(1);
    start(
        Plugin.named("test")
            .filter(
                (request, config) -> {
                  if (request.path().equals("/wait")) {
                    begun.countDown();
                    go.await();
                  }
                  return Decision.allow();
                }));
    send("1", call(1, "/wait"));
    assertTrue(begun.await(30, TimeUnit.SECONDS));
    // One is under way when another configuration comes.
    assertEquals(
        "2",
        LifecycleGrpc.newBlockingStub(channel)
            .configure(ConfigureRequest.newBuilder().setHash("2").build())
            .getHash());
    send("2", call(2, "/"));
    assertTrue(answers(1).get(2L).getRequest().hasAllow());
    assertEquals(java.util.Set.of("2"), hashes);
    hashes.clear();
    go.countDown();
    assertTrue(answers(1).get(1L).getRequest().hasAllow());
    assertEquals(java.util.Set.of("1"), hashes);
  }

  @Test
  void a_plugin_that_stops_answers_what_it_has() throws Exception {
    CountDownLatch begun = new CountDownLatch(1);
    CountDownLatch go = new CountDownLatch(1);
    start(
        Plugin.named("test")
            .filter(
                (request, config) -> {
                  begun.countDown();
                  go.await();
                  return Decision.allow();
                }));
    send("", call(1, "/"));
    assertTrue(begun.await(30, TimeUnit.SECONDS));
    services.close();
    go.countDown();
    assertTrue(answers(1).get(1L).getRequest().hasAllow());
    assertNull(end.get(30, TimeUnit.SECONDS));
  }
}
