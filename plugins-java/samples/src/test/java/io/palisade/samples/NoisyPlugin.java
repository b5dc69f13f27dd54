package io.palisade.samples;

import io.palisade.plugin.Decision;
import io.palisade.plugin.Plugin;
import io.palisade.plugin.Request;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.logging.Logger;

/** A plugin that talks where it should not, and waits when it is told to. Run as a process by the tests. */
final class NoisyPlugin {

  private static final Logger logger = Logger.getLogger("noisy");

  private NoisyPlugin() {}

  private static Decision check(Request request) throws Exception {
    System.out.println("printed for " + request.path());
    logger.info("logged for " + request.path());
    if (request.path().equals("/throw")) {
      throw new IllegalStateException("on purpose");
    }
    String gate = request.header("x-gate");
    while (gate != null && !Files.exists(Path.of(gate))) {
      Thread.sleep(5);
    }
    return Decision.allow();
  }

  public static void main(String[] args) {
    Plugin plugin = Plugin.named("noisy").filter((request, config) -> check(request));
    System.out.println("printed before the handshake");
    Runtime.getRuntime()
        .addShutdownHook(new Thread(() -> System.out.println("printed by a shutdown hook")));
    plugin.serve();
  }
}
