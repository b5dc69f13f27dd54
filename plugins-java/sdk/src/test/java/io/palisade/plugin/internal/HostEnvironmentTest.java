package io.palisade.plugin.internal;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class HostEnvironmentTest {

  private static final Map<String, String> COOKIE = Map.of("PALISADE_PLUGIN", "ON");

  private static Map<String, String> with(String name, String value) {
    Map<String, String> environment = new HashMap<>(COOKIE);
    environment.put(name, value);
    return environment;
  }

  private static String refusal(Map<String, String> environment) {
    return assertThrows(HostEnvironment.Unusable.class, () -> HostEnvironment.read(environment)).getMessage();
  }

  @Test
  void a_process_without_the_cookie_is_told_how_it_is_started() {
    assertTrue(refusal(Map.of()).contains("started by palisade"));
    assertTrue(refusal(Map.of("PALISADE_PLUGIN", "1")).contains("started by palisade"));
  }

  @ParameterizedTest
  @ValueSource(strings = {"2", "", "2,11", "x"})
  void a_host_without_version_1_is_refused(String versions) {
    assertTrue(refusal(with("PLUGIN_PROTOCOL_VERSIONS", versions)).contains("this plugin speaks 1"));
  }

  @ParameterizedTest
  @ValueSource(strings = {"1", "3,1,2", " 1 "})
  void version_1_may_stand_anywhere(String versions) throws Exception {
    HostEnvironment.read(with("PLUGIN_PROTOCOL_VERSIONS", versions));
  }

  @Test
  void a_host_that_wants_tls_is_not_answered_in_clear_text() {
    assertTrue(refusal(with("PLUGIN_CLIENT_CERT", "pem")).contains("AutoMTLS"));
  }

  @Test
  void the_path_of_a_socket_has_a_limit() throws Exception {
    String fits = "/" + "a".repeat(107 - 1 - "/plugin.sock".length());
    assertEquals(
        107, HostEnvironment.read(with("PLUGIN_UNIX_SOCKET_DIR", fits)).socket().toString().length());
    String message = refusal(with("PLUGIN_UNIX_SOCKET_DIR", fits + "a"));
    assertTrue(message.contains("has 108 bytes"), message);
  }

  @Test
  void the_socket_is_where_the_host_says() throws Exception {
    Map<String, String> environment = with("PLUGIN_UNIX_SOCKET_DIR", "/run/p");
    environment.put("TMPDIR", "/run/t");
    HostEnvironment read = HostEnvironment.read(environment);
    assertEquals(Path.of("/run/p/plugin.sock"), read.socket());
    assertEquals(Optional.of(Path.of("/run/t")), read.temporary());
  }

  @Test
  void a_shared_directory_takes_a_name_of_this_process() throws Exception {
    Path socket = HostEnvironment.read(with("TMPDIR", "/run/t")).socket();
    assertEquals(
        Path.of("/run/t/palisade-plugin-" + ProcessHandle.current().pid() + ".sock"), socket);
    assertEquals(
        Path.of(System.getProperty("java.io.tmpdir")).toAbsolutePath(),
        HostEnvironment.read(COOKIE).socket().getParent());
  }
}
