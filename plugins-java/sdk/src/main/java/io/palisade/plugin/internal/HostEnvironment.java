package io.palisade.plugin.internal;

import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Map;
import java.util.Optional;

/**
 * What the host put into the environment.
 *
 * @param socket where to listen, if the platform has unix sockets
 * @param socketGroup group name or id that the socket is to belong to, if any
 * @param temporary the directory for temporary files, if the host names one
 */
record HostEnvironment(Path socket, Optional<String> socketGroup, Optional<Path> temporary) {

  static final String COOKIE_NAME = "PALISADE_PLUGIN";
  static final String COOKIE_VALUE = "ON";

  private static final String PROTOCOL_VERSION = "1";

  /** {@code sun_path} of Linux's {@code sockaddr_un}, less the closing zero. */
  private static final int LONGEST_SOCKET_PATH = 107;

  /** Why this process can't be a plugin; for a person to read. */
  static final class Unusable extends Exception {
    private static final long serialVersionUID = 1;

    Unusable(String message) {
      super(message);
    }
  }

  static boolean hasCookie(Map<String, String> environment) {
    return COOKIE_VALUE.equals(environment.get(COOKIE_NAME));
  }

  static HostEnvironment read(Map<String, String> environment) throws Unusable {
    if (!hasCookie(environment)) {
      throw new Unusable(
          "this program is a plugin: it is started by palisade, not by hand.\n"
              + "Name it in palisade.yaml:\n"
              + "  plugins:\n"
              + "    example:\n"
              + "      command: [java, -jar, example.jar]");
    }
    String versions = environment.get("PLUGIN_PROTOCOL_VERSIONS");
    if (versions != null
        && Arrays.stream(versions.split(",")).map(String::trim).noneMatch(PROTOCOL_VERSION::equals)) {
      throw new Unusable(
          "the host speaks versions " + versions + " of the plugin protocol, this plugin speaks 1");
    }
    if (environment.containsKey("PLUGIN_CLIENT_CERT")) {
      throw new Unusable("the host asks for AutoMTLS (PLUGIN_CLIENT_CERT), which this SDK does not offer");
    }
    Optional<Path> temporary = value(environment, "TMPDIR").map(Path::of);
    Optional<Path> socketDirectory = value(environment, "PLUGIN_UNIX_SOCKET_DIR").map(Path::of);
    // Without a directory of its own, the name has to tell one plugin from another.
    Path socket =
        socketDirectory
            .map(directory -> directory.resolve("plugin.sock"))
            .orElseGet(
                () ->
                    temporary
                        .orElseGet(() -> Path.of(System.getProperty("java.io.tmpdir")))
                        .resolve("palisade-plugin-" + ProcessHandle.current().pid() + ".sock"))
            .toAbsolutePath();
    int length = socket.toString().getBytes(StandardCharsets.UTF_8).length;
    if (length > LONGEST_SOCKET_PATH) {
      throw new Unusable(
          "the path of the socket has " + length + " bytes, a unix socket's has at most "
              + LONGEST_SOCKET_PATH + ": " + socket
              + (socketDirectory.isPresent() ? "; choose a shorter PLUGIN_UNIX_SOCKET_DIR" : ""));
    }
    return new HostEnvironment(socket, value(environment, "PLUGIN_UNIX_SOCKET_GROUP"), temporary);
  }

  private static Optional<String> value(Map<String, String> environment, String name) {
    return Optional.ofNullable(environment.get(name)).filter(value -> !value.isEmpty());
  }
}
