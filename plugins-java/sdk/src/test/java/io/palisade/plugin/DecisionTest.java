package io.palisade.plugin;

import static io.palisade.plugin.Decision.allow;
import static io.palisade.plugin.Decision.deny;
import static io.palisade.plugin.ResponseDecision.pass;
import static org.junit.jupiter.api.Assertions.assertDoesNotThrow;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class DecisionTest {

  @ParameterizedTest
  @ValueSource(
      strings = {
        "", "a b", ":path", "a\n", "ä", "content-length", "Transfer-Encoding", "connection", "upgrade"
      })
  void names_that_no_plugin_may_give_are_refused_at_once(String name) {
    assertThrows(IllegalArgumentException.class, () -> allow().setHeader(name, "v"));
    assertThrows(IllegalArgumentException.class, () -> allow().addHeader(name, "v"));
    assertThrows(IllegalArgumentException.class, () -> allow().removeHeader(name));
    assertThrows(IllegalArgumentException.class, () -> allow().responseHeader(name, "v"));
    assertThrows(IllegalArgumentException.class, () -> pass().removeHeader(name));
    assertThrows(IllegalArgumentException.class, () -> deny(403).header(name, "v"));
  }

  @ParameterizedTest
  @ValueSource(strings = {"a\r\nx-admin: 1", "a\nb", "nul\0", "\u007f"})
  void values_with_control_characters_are_refused_at_once(String value) {
    assertThrows(IllegalArgumentException.class, () -> allow().setHeader("x", value));
    assertThrows(IllegalArgumentException.class, () -> deny(403).header("x", value));
  }

  @Test
  void the_host_of_a_request_stays() {
    assertThrows(IllegalArgumentException.class, () -> allow().setHeader("Host", "evil.example"));
    assertThrows(IllegalArgumentException.class, () -> allow().removeHeader("host"));
  }

  @ParameterizedTest
  @ValueSource(ints = {0, 100, 199, 600, -1})
  void a_status_that_is_no_final_one_is_refused(int status) {
    assertThrows(IllegalArgumentException.class, () -> deny(status, ""));
  }

  @ParameterizedTest
  @ValueSource(ints = {204, 205, 304})
  void a_status_without_a_body_has_none(int status) {
    assertThrows(IllegalArgumentException.class, () -> deny(status, "text"));
    assertDoesNotThrow(() -> deny(status));
  }

  @Test
  void a_body_has_a_limit() {
    assertDoesNotThrow(() -> deny(403, new byte[1 << 20]));
    assertThrows(IllegalArgumentException.class, () -> deny(403, new byte[(1 << 20) + 1]));
  }

  @Test
  void changes_keep_their_order_and_leave_the_decision_that_they_were_added_to() {
    Decision.Allow plain = allow();
    Decision.Allow changed =
        plain.setHeader("X-A", "1").addHeader("x-a", "2").removeHeader("X-B").responseHeader("x-c", "3");
    assertEquals(List.of(), plain.requestChanges());
    assertEquals(
        List.of(
            HeaderChange.set("x-a", "1"),
            HeaderChange.add("x-a", "2"),
            new HeaderChange.Remove("x-b")),
        changed.requestChanges());
    assertEquals(List.of(HeaderChange.set("x-c", "3")), changed.responseChanges());
  }

  @Test
  void text_says_what_it_is_unless_the_plugin_does() {
    assertEquals("text/plain; charset=utf-8", deny(403, "no").headers().first("content-type"));
    assertEquals(
        List.of("application/json"),
        deny(403, "{}").header("Content-Type", "application/json").headers().all("content-type"));
    assertFalse(deny(403).headers().contains("content-type"));
    assertFalse(deny(403, new byte[] {1}).headers().contains("content-type"));
  }
}
