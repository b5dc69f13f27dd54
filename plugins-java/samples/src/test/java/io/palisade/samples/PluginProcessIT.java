package io.palisade.samples;

import static io.palisade.plugin.Decision.allow;
import static io.palisade.plugin.Decision.deny;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Empty;
import io.grpc.CallOptions;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.ProtoUtils;
import io.grpc.stub.ClientCalls;
import io.palisade.plugin.Decision;
import io.palisade.plugin.internal.HostSide;
import io.palisade.plugin.testing.RequestBuilder;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.channels.ServerSocketChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Plugins as processes, from the handshake to their end. */
class PluginProcessIT {

  private static final List<String> HEADER_AUTH =
      List.of(RunningPlugin.java(), "-jar", RunningPlugin.target().resolve("header-auth.jar").toString());

  @TempDir private Path dir;

  private RunningPlugin noisy(String... options) throws Exception {
    return RunningPlugin.main(
        dir, RunningPlugin.target().resolve("test-classes"), NoisyPlugin.class.getName(), options);
  }

  private String handshake() {
    return "1|1|unix|" + dir.resolve("plugin.sock") + "|grpc\n";
  }

  // Processes that can't be plugins.

  private String refusal(Map<String, String> environment) throws Exception {
    try (RunningPlugin plugin = RunningPlugin.start(environment, HEADER_AUTH)) {
      assertEquals(1, plugin.exitStatus());
      assertEquals("", plugin.stdoutAtEnd());
      return plugin.stderrAtEnd();
    }
  }

  @Test
  void a_person_who_starts_a_plugin_is_told_what_it_is() throws Exception {
    String message = refusal(Map.of());
    assertTrue(message.startsWith("header-auth: this program is a plugin: it is started by palisade"), message);
    assertFalse(message.contains("\tat "), message);
  }

  @Test
  void a_socket_path_that_is_too_long_is_named() throws Exception {
    Path deep = Files.createDirectories(dir.resolve("d".repeat(100)));
    String message = refusal(RunningPlugin.environment(deep));
    assertTrue(message.contains("a unix socket's has at most 107: " + deep), message);
  }

  @Test
  void a_socket_directory_that_is_not_there_is_named() throws Exception {
    Map<String, String> environment = new HashMap<>(RunningPlugin.environment(dir));
    environment.put("PLUGIN_UNIX_SOCKET_DIR", dir.resolve("missing").toString());
    String message = refusal(environment);
    assertTrue(message.contains("the plugin can't serve"), message);
    assertTrue(message.contains(dir.resolve("missing").toString()), message);
  }

  @Test
  void a_live_plugin_keeps_its_socket() throws Exception {
    try (RunningPlugin first = RunningPlugin.jar(dir, "header-auth.jar")) {
      first.connect(dir);
      String message = refusal(RunningPlugin.environment(dir));
      assertTrue(message.contains("another process listens on"), message);
      first.signal("TERM");
      assertEquals(0, first.exitStatus());
    }
  }

  @Test
  void a_group_that_there_is_not_is_named() throws Exception {
    Map<String, String> environment = new HashMap<>(RunningPlugin.environment(dir));
    environment.put("PLUGIN_UNIX_SOCKET_GROUP", "nobody-has-this-group");
    String message = refusal(environment);
    assertTrue(message.contains("there is no group nobody-has-this-group"), message);
  }

  // Ends.

  @Test
  void sigterm_lets_calls_finish_and_ends_with_status_0() throws Exception {
    try (RunningPlugin plugin = noisy()) {
      HostSide host = plugin.configured(dir, Map.of());
      Path gate = dir.resolve("gate");
      CompletableFuture<Decision> call =
          CompletableFuture.supplyAsync(
              () -> host.check(RequestBuilder.get("/slow").header("x-gate", gate.toString()).build()));
      plugin.awaitStderr("printed for /slow");
      plugin.signal("TERM");
      Files.createFile(gate);
      assertEquals(allow(), call.get(60, TimeUnit.SECONDS));
      assertEquals(0, plugin.exitStatus());
      assertEquals(handshake(), plugin.stdoutAtEnd());
      assertTrue(plugin.stderrAtEnd().contains("printed by a shutdown hook"));
      assertFalse(Files.exists(dir.resolve("plugin.sock")));
    }
  }

  @Test
  void a_call_that_does_not_end_does_not_keep_the_process() throws Exception {
    try (RunningPlugin plugin = noisy()) {
      HostSide host = plugin.configured(dir, Map.of());
      CompletableFuture<Decision> call =
          CompletableFuture.supplyAsync(
              () -> host.check(RequestBuilder.get("/never").header("x-gate", dir + "/never").build()));
      plugin.awaitStderr("printed for /never");
      plugin.signal("TERM");
      assertEquals(0, plugin.exitStatus());
      assertThrows(Exception.class, () -> call.get(60, TimeUnit.SECONDS));
    }
  }

  @Test
  void the_shutdown_call_ends_the_process_with_status_0() throws Exception {
    try (RunningPlugin plugin = RunningPlugin.jar(dir, "header-auth.jar")) {
      plugin.connect(dir);
      callShutdown(plugin);
      assertEquals(0, plugin.exitStatus());
      assertEquals(handshake(), plugin.stdoutAtEnd());
    }
  }

  @Test
  void a_plugin_for_which_no_thread_can_be_made_stops_all_the_same() throws Exception {
    // Stacks so large that room for one of them is not left, and for everything else there is.
    try (RunningPlugin plugin = noisy("-Xss512m")) {
      HostSide host = plugin.configured(dir, Map.of());
      // It has threads that are idle: the order to stop can be taken.
      List<Thread> calls = new ArrayList<>();
      for (int i = 0; i < 4; i++) {
        String path = "/call-" + i;
        Thread call =
            new Thread(() -> host.check(RequestBuilder.get(path).header("x-gate", dir + "/gate").build()));
        call.start();
        calls.add(call);
        plugin.awaitStderr("printed for " + path);
      }
      Files.createFile(dir.resolve("gate"));
      for (Thread call : calls) {
        call.join();
      }
      plugin.letGrowBy(256 << 20);
      callShutdown(plugin);
      assertEquals(0, plugin.exitStatus(), plugin::stderr);
    }
  }

  private static void callShutdown(RunningPlugin plugin) {
    MethodDescriptor<Empty, Empty> method =
        MethodDescriptor.<Empty, Empty>newBuilder()
            .setType(MethodDescriptor.MethodType.UNARY)
            .setFullMethodName("plugin.GRPCController/Shutdown")
            .setRequestMarshaller(ProtoUtils.marshaller(Empty.getDefaultInstance()))
            .setResponseMarshaller(ProtoUtils.marshaller(Empty.getDefaultInstance()))
            .build();
    ClientCalls.blockingUnaryCall(
        plugin.channel(), method, CallOptions.DEFAULT, Empty.getDefaultInstance());
  }

  @Test
  void sigint_is_not_for_plugins() throws Exception {
    try (RunningPlugin plugin = noisy()) {
      HostSide host = plugin.configured(dir, Map.of());
      plugin.signal("INT");
      host.check(RequestBuilder.get("/after-int").build());
      plugin.signal("TERM");
      assertEquals(0, plugin.exitStatus());
    }
  }

  @Test
  void a_plugin_does_not_outlive_its_host() throws Exception {
    List<String> command =
        List.of(
            "/bin/sh",
            "-c",
            "\"$0\" -jar \"$1\" & echo $! >&2; wait",
            RunningPlugin.java(),
            RunningPlugin.target().resolve("header-auth.jar").toString());
    try (RunningPlugin shell = RunningPlugin.start(RunningPlugin.environment(dir), command)) {
      shell.connect(dir);
      ProcessHandle plugin =
          ProcessHandle.of(Long.parseLong(shell.stderr().lines().findFirst().orElseThrow())).orElseThrow();
      assertTrue(plugin.isAlive());
      shell.signal("KILL");
      plugin.onExit().get(60, TimeUnit.SECONDS);
      assertFalse(Files.exists(dir.resolve("plugin.sock")));
    }
  }

  // Output.

  @Test
  void what_a_plugin_prints_and_logs_goes_to_standard_error() throws Exception {
    try (RunningPlugin plugin = noisy()) {
      HostSide host = plugin.configured(dir, Map.of());
      host.check(RequestBuilder.get("/talk").build());
      StatusRuntimeException thrown =
          assertThrows(
              StatusRuntimeException.class, () -> host.check(RequestBuilder.get("/throw").build()));
      assertEquals(Status.Code.INTERNAL, thrown.getStatus().getCode());
      plugin.signal("TERM");
      assertEquals(0, plugin.exitStatus());
      assertEquals(handshake(), plugin.stdoutAtEnd());
      String stderr = plugin.stderrAtEnd();
      assertTrue(stderr.contains("printed before the handshake\n"), stderr);
      assertTrue(stderr.contains("printed for /talk\n"), stderr);
      Pattern logged =
          Pattern.compile(
              "\\{\"@level\":\"info\",\"@message\":\"logged for /talk\","
                  + "\"@timestamp\":\"\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{6}Z\",\"@module\":\"noisy\"}");
      assertTrue(stderr.lines().anyMatch(logged.asMatchPredicate()), stderr);
      String failure = stderr.lines().filter(line -> line.contains("on purpose")).findFirst().orElse("");
      assertTrue(failure.startsWith("{\"@level\":\"error\",\"@message\":\"the filter failed\""), stderr);
      assertTrue(failure.contains("\\n\\tat io.palisade.samples.NoisyPlugin.check"), stderr);
    }
  }

  // Places.

  @Test
  void native_libraries_are_unpacked_where_the_host_says_and_nothing_is_said_of_it() throws Exception {
    String keep = "-Dio.grpc.netty.shaded.io.netty.native.deleteLibAfterLoading=false";
    try (RunningPlugin plugin = RunningPlugin.jar(dir, "header-auth.jar", keep)) {
      HostSide host = plugin.configured(dir, Map.of());
      host.check(RequestBuilder.get("/").build());
      try (Stream<Path> files = Files.list(dir)) {
        assertTrue(files.anyMatch(file -> file.toString().contains("netty_transport_native_epoll")));
      }
      plugin.signal("TERM");
      assertEquals(0, plugin.exitStatus());
      assertEquals("", plugin.stderrAtEnd());
    }
  }

  @Test
  void a_socket_left_by_a_killed_plugin_is_no_obstacle() throws Exception {
    Path socket = dir.resolve("plugin.sock");
    ServerSocketChannel.open(StandardProtocolFamily.UNIX)
        .bind(UnixDomainSocketAddress.of(socket))
        .close();
    assertTrue(Files.exists(socket));
    try (RunningPlugin plugin = RunningPlugin.jar(dir, "header-auth.jar")) {
      plugin.connect(dir);
    }
  }

  @Test
  void a_host_without_native_libraries_gets_a_unix_socket_too() throws Exception {
    String option = "-Dio.grpc.netty.shaded.io.netty.transport.noNative=true";
    try (RunningPlugin plugin = RunningPlugin.jar(dir, "header-auth.jar", option)) {
      HostSide host = plugin.configured(dir, Map.of());
      assertEquals(deny(403, "forbidden"), host.check(RequestBuilder.get("/").build()));
      plugin.signal("TERM");
      assertEquals(0, plugin.exitStatus());
      assertEquals("", plugin.stderrAtEnd());
    }
  }

  @Test
  void a_group_can_be_let_in() throws Exception {
    Object gid = Files.getAttribute(dir, "unix:gid");
    Map<String, String> environment = new HashMap<>(RunningPlugin.environment(dir));
    environment.put("PLUGIN_UNIX_SOCKET_GROUP", gid.toString());
    try (RunningPlugin plugin = RunningPlugin.start(environment, HEADER_AUTH)) {
      plugin.connect(dir);
      Path socket = dir.resolve("plugin.sock");
      assertEquals("rw-rw----", PosixFilePermissions.toString(Files.getPosixFilePermissions(socket)));
      assertEquals(gid, Files.getAttribute(socket, "unix:gid"));
    }
  }

  @Test
  void flags_of_the_jvm_do_no_harm() throws Exception {
    List<RunningPlugin> plugins = new ArrayList<>();
    try {
      for (String flags : List.of("-XX:+UseSerialGC", "-Xrs")) {
        Path own = Files.createDirectory(dir.resolve("p" + plugins.size()));
        RunningPlugin plugin = RunningPlugin.jar(own, "header-auth.jar", flags, "-XX:TieredStopAtLevel=1");
        plugins.add(plugin);
        plugin.configured(own, Map.of());
      }
    } finally {
      for (RunningPlugin plugin : plugins) {
        plugin.close();
      }
    }
    try (Stream<Path> left = Files.list(dir)) {
      assertEquals(2, left.count());
    }
  }
}
