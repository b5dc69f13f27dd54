package io.palisade.plugin.internal;

import io.grpc.Server;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.logging.Level;
import java.util.logging.Logger;

/** The process that a plugin is: from the host's environment through the handshake to its end. */
public final class PluginProcess {

  private static final Logger logger = Logger.getLogger(PluginProcess.class.getName());

  /** How long calls in flight have to finish. */
  private static final Duration GRACE = Duration.ofSeconds(5);

  private final PluginServices services;
  private final Path socket;
  private final AtomicBoolean stopping = new AtomicBoolean();
  private volatile Serving serving;

  private record Serving(Server server, Listener listener) {}

  private PluginProcess(Definition definition, HostEnvironment environment) {
    this.services = new PluginServices(definition, this::stop);
    this.socket = environment.socket();
  }

  /** In a process that a host started, leads {@link System#out} to standard error. */
  public static void keepStandardOutputClean() {
    if (HostEnvironment.hasCookie(System.getenv()) && System.out != System.err) {
      System.setOut(System.err);
    }
  }

  /**
   * Serves the host until it stops the plugin, and ends the process.
   *
   * @param definition the plugin
   */
  public static void serve(Definition definition) {
    try {
      HostEnvironment environment = HostEnvironment.read(System.getenv());
      keepStandardOutputClean();
      HclogHandler.install(System.err);
      useTemporaryDirectory(environment);
      new PluginProcess(definition, environment).run(environment);
    } catch (HostEnvironment.Unusable e) {
      fail(definition.name() + ": " + e.getMessage());
    } catch (IOException e) {
      fail(definition.name() + ": the plugin can't serve: " + e);
    }
  }

  private static void fail(String message) {
    System.err.println(message);
    System.err.flush();
    System.exit(1);
  }

  /** Before netty looks, once, for where to unpack its native library; the JDK itself has looked already. */
  private static void useTemporaryDirectory(HostEnvironment environment) {
    environment
        .temporary()
        .map(Path::toString)
        .ifPresent(
            directory -> {
              System.setProperty("java.io.tmpdir", directory);
              System.setProperty("io.grpc.netty.shaded.io.netty.native.workdir", directory);
            });
  }

  private void run(HostEnvironment environment) throws IOException {
    ParentWatch.start(this::orphaned);
    Signals.handle("TERM", this::stop);
    // A terminal's Ctrl-C goes to the whole process group; the host decides when its plugins stop.
    Signals.handle("INT", () -> {});
    Listener listener = Listener.on(socket);
    Server server = services.server(listener.serverBuilder()).start();
    serving = new Serving(server, listener);
    if (environment.socketGroup().isPresent()) {
      listener.shareWith(environment.socketGroup().get());
    }
    shakeHands(listener.endpoint(server));
    awaitEnd();
  }

  /**
   * Writes the one line that standard output is for, straight to the descriptor, since System.out leads elsewhere. The
   * descriptor stays open: what native code prints there is the host's to log.
   */
  private static void shakeHands(String endpoint) throws IOException {
    new FileOutputStream(FileDescriptor.out)
        .write(("1|1|" + endpoint + "|grpc\n").getBytes(StandardCharsets.UTF_8));
  }

  private static void awaitEnd() {
    Object never = new Object();
    synchronized (never) {
      while (true) {
        try {
          never.wait();
        } catch (InterruptedException e) {
          logger.log(Level.FINE, "the process ends by its host's order only", e);
        }
      }
    }
  }

  /** Stops gracefully, on a thread of its own: the caller is a call or a signal. */
  private void stop() {
    if (stopping.compareAndSet(false, true)) {
      new Thread(this::finish, "palisade-stop").start();
    }
  }

  private void finish() {
    Serving stopped = serving;
    try {
      if (stopped != null) {
        services.stop(stopped.server, GRACE);
        stopped.listener.close();
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    } finally {
      removeSocket();
      // The author's shutdown hooks run now; should one hang, the process ends all the same.
      Threads.daemon(PluginProcess::haltAfterGrace, "palisade-halt").start();
      System.exit(0);
    }
  }

  private static void haltAfterGrace() {
    try {
      Thread.sleep(GRACE.toMillis());
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
    Runtime.getRuntime().halt(0);
  }

  /** Nobody is left to serve, and nobody to be graceful for. */
  private void orphaned() {
    removeSocket();
    Runtime.getRuntime().halt(1);
  }

  private void removeSocket() {
    try {
      Files.deleteIfExists(socket);
    } catch (IOException e) {
      logger.log(Level.FINE, "the socket stays behind", e);
    }
  }
}
