package io.palisade.samples;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assertions.fail;

import io.grpc.ManagedChannel;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.netty.channel.EventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.MultiThreadIoEventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.nio.NioIoHandler;
import io.grpc.netty.shaded.io.netty.channel.socket.nio.NioDomainSocketChannel;
import io.palisade.plugin.Config;
import io.palisade.plugin.internal.HostSide;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.net.UnixDomainSocketAddress;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.function.Predicate;
import java.util.function.Supplier;

/** A plugin in a process of its own, started as the proxy starts one: nothing in its environment but what it needs. */
final class RunningPlugin implements AutoCloseable {

  private static final long PATIENCE_SECONDS = 60;

  private final Process process;
  private final Output stdout;
  private final Output stderr;
  private EventLoopGroup events;
  private ManagedChannel channel;

  private RunningPlugin(Process process) {
    this.process = process;
    this.stdout = new Output(process.getInputStream());
    this.stderr = new Output(process.getErrorStream());
  }

  static Path target() {
    return Path.of(System.getProperty("basedir", "."), "target").toAbsolutePath();
  }

  static String java() {
    return Path.of(System.getProperty("java.home"), "bin", "java").toString();
  }

  static Map<String, String> environment(Path dir) {
    return Map.of(
        "PALISADE_PLUGIN", "ON",
        "PLUGIN_PROTOCOL_VERSIONS", "1",
        "PLUGIN_UNIX_SOCKET_DIR", dir.toString(),
        "TMPDIR", dir.toString());
  }

  static RunningPlugin start(Map<String, String> environment, List<String> command)
      throws IOException {
    ProcessBuilder builder = new ProcessBuilder(command);
    builder.environment().clear();
    builder.environment().putAll(environment);
    return new RunningPlugin(builder.start());
  }

  static RunningPlugin jar(Path dir, String jar, String... options) throws IOException {
    List<String> command = new ArrayList<>(List.of(java()));
    command.addAll(List.of(options));
    command.addAll(List.of("-jar", target().resolve(jar).toString()));
    return start(environment(dir), command);
  }

  static RunningPlugin main(Path dir, Path classes, String main, String... options)
      throws IOException {
    List<String> command = new ArrayList<>(List.of(java()));
    command.addAll(List.of(options));
    command.addAll(List.of("-cp", target().resolve("header-auth.jar") + ":" + classes, main));
    return start(environment(dir), command);
  }

  /** Reads the handshake, which has to be the first line, and connects to where it says. */
  HostSide connect(Path dir) {
    assertEquals("1|1|unix|" + dir.resolve("plugin.sock") + "|grpc\n", firstLine());
    events = new MultiThreadIoEventLoopGroup(1, NioIoHandler.newFactory());
    channel =
        NettyChannelBuilder.forAddress(UnixDomainSocketAddress.of(dir.resolve("plugin.sock")))
            .channelType(NioDomainSocketChannel.class)
            .eventLoopGroup(events)
            .usePlaintext()
            .build();
    return new HostSide(channel, Duration.ofSeconds(PATIENCE_SECONDS));
  }

  HostSide configured(Path dir, Map<String, ?> config) {
    HostSide host = connect(dir);
    assertEquals(List.of(), host.configure(Config.of(config)));
    return host;
  }

  private String firstLine() {
    return stdout.await(
        read -> read.contains("\n"), () -> "no handshake; stderr: " + stderr());
  }

  ManagedChannel channel() {
    return channel;
  }

  long pid() {
    return process.pid();
  }

  void signal(String name) throws Exception {
    assertEquals(0, new ProcessBuilder("kill", "-" + name, "" + process.pid()).start().waitFor());
  }

  /** Bounds its address space to what it has now and some bytes more. */
  void letGrowBy(long bytes) throws Exception {
    Path status = Path.of("/proc/" + process.pid() + "/status");
    String size = Files.readAllLines(status).stream().filter(line -> line.startsWith("VmSize:")).findFirst().get();
    long limit = Long.parseLong(size.replaceAll("[^0-9]", "")) * 1024 + bytes;
    List<String> prlimit = List.of("prlimit", "--pid", "" + process.pid(), "--as=" + limit);
    assertEquals(0, new ProcessBuilder(prlimit).start().waitFor());
  }

  int exitStatus() throws InterruptedException {
    assertTrue(process.waitFor(PATIENCE_SECONDS, TimeUnit.SECONDS), "the process is still there");
    return process.exitValue();
  }

  /** All of standard output, once the process has ended. */
  String stdoutAtEnd() {
    return stdout.atEnd();
  }

  /** All of standard error, once the process has ended. */
  String stderrAtEnd() {
    return stderr.atEnd();
  }

  String stderr() {
    return stderr.soFar();
  }

  String awaitStderr(String text) {
    return stderr.await(read -> read.contains(text), () -> "\"" + text + "\" is not in: " + stderr());
  }

  @Override
  public void close() {
    if (channel != null) {
      channel.shutdownNow();
      events.shutdownGracefully(0, 1, TimeUnit.SECONDS);
    }
    process.destroyForcibly().onExit().join();
  }

  /** What a process writes, read all the time so that it never waits. */
  private static final class Output {
    private final StringBuilder read = new StringBuilder();
    private boolean ended;

    Output(InputStream in) {
      Thread reader =
          new Thread(
              () -> {
                try (BufferedReader lines =
                    new BufferedReader(new InputStreamReader(in, StandardCharsets.UTF_8))) {
                  char[] buffer = new char[8192];
                  for (int n = lines.read(buffer); n >= 0; n = lines.read(buffer)) {
                    append(new String(buffer, 0, n));
                  }
                } catch (IOException e) {
                  throw new UncheckedIOException(e);
                } finally {
                  end();
                }
              });
      reader.setDaemon(true);
      reader.start();
    }

    private synchronized void append(String text) {
      read.append(text);
      notifyAll();
    }

    private synchronized void end() {
      ended = true;
      notifyAll();
    }

    synchronized String soFar() {
      return read.toString();
    }

    String atEnd() {
      return await(any -> ended, () -> "the stream is still open");
    }

    synchronized String await(
        Predicate<String> condition, Supplier<String> otherwise) {
      long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(PATIENCE_SECONDS);
      while (!condition.test(read.toString())) {
        if (ended || System.nanoTime() > deadline) {
          fail(otherwise.get());
        }
        try {
          wait(100);
        } catch (InterruptedException e) {
          Thread.currentThread().interrupt();
          throw new IllegalStateException(e);
        }
      }
      return read.toString();
    }
  }
}
