package io.palisade.plugin.internal;

import io.grpc.Server;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.concurrent.CountDownLatch;
import java.util.logging.Level;
import java.util.logging.Logger;

/** The process that a plugin is: from the host's environment through the handshake to its end. */
public final class PluginProcess {

  private static final Logger logger = Logger.getLogger(PluginProcess.class.getName());

  /** How long calls in flight have to finish. */
  private static final Duration GRACE = Duration.ofSeconds(5);

  private final PluginServices services;
  private final Path socket;
  private final CountDownLatch stopping = new CountDownLatch(1);

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
    if (environment.socketGroup().isPresent()) {
      listener.shareWith(environment.socketGroup().get());
    }
    shakeHands(listener.endpoint(server));
    awaitStop();
    finish(server, listener);
  }

  /**
   * Writes the one line that standard output is for, straight to the descriptor, since System.out leads elsewhere. The
   * descriptor stays open: what native code prints there is the host's to log.
   */
  private static void shakeHands(String endpoint) throws IOException {
    new FileOutputStream(FileDescriptor.out)
        .write(("1|1|" + endpoint + "|grpc\n").getBytes(StandardCharsets.UTF_8));
  }

  /** On the thread that serves, which has nothing else to do: there may be no other when a plugin is to stop. */
  private void awaitStop() {
    while (true) {
      try {
        stopping.await();
        return;
      } catch (InterruptedException e) {
        logger.log(Level.FINE, "the process ends by its host's order only", e);
      }
    }
  }

  /** Lets the plugin stop gracefully. Returns at once: the caller is a call or a signal. */
  private void stop() {
    stopping.countDown();
  }

  private void finish(Server server, Listener listener) {
    try {
      services.stop(server, GRACE);
      listener.close();
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    } finally {
      removeSocket();
      exit();
    }
  }

  /** Runs the author's shutdown hooks; should one hang, the process ends all the same. */
  private static void exit() {
    try {
      Threads.daemon(PluginProcess::haltAfterGrace, "palisade-halt").start();
    } catch (Throwable e) {
      Handlers.log(logger, Level.WARNING, "shutdown hooks may take as long as they like", e);
    }
    System.exit(0);
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
