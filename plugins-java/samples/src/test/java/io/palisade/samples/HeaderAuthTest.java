package io.palisade.samples;

import static io.palisade.plugin.Decision.allow;
import static io.palisade.plugin.Decision.deny;
import static io.palisade.plugin.testing.RequestBuilder.get;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import io.palisade.plugin.ConfigException;
import io.palisade.plugin.testing.PluginTester;
import java.util.Map;
import org.junit.jupiter.api.Test;

class HeaderAuthTest {

  @Test
  void a_request_without_the_right_value_is_denied() {
    try (PluginTester tester = PluginTester.of(HeaderAuth.plugin())) {
      assertEquals(deny(403, "forbidden"), tester.check(get("/")));
      assertEquals(deny(403, "forbidden"), tester.check(get("/").header("User", "guest")));
      assertEquals(allow(), tester.check(get("/").header("User", "admin")));
    }
  }

  @Test
  void header_and_value_are_configured() {
    try (PluginTester tester =
        PluginTester.of(HeaderAuth.plugin(), Map.of("header", "X-Team", "value", "core"))) {
      assertEquals(deny(403, "forbidden"), tester.check(get("/").header("User", "admin")));
      assertEquals(allow(), tester.check(get("/").header("x-team", "core")));
    }
  }

  @Test
  void a_value_of_another_type_is_refused() {
    assertThrows(
        ConfigException.class, () -> PluginTester.of(HeaderAuth.plugin(), Map.of("value", 1)));
  }
}
