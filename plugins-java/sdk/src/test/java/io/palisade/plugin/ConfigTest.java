package io.palisade.plugin;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Function;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

class ConfigTest {

  private static final Config CONFIG =
      Config.of(
          Map.of(
              "text", "hello",
              "count", 3.0,
              "ratio", 0.5,
              "large", 0x1p54,
              "on", true,
              "names", List.of("a", "b"),
              "mixed", Arrays.asList("a", 1.0),
              "holes", Arrays.asList("a", null),
              "limits", Map.of("rate", 7.0, "burst", "many")));

  static Stream<Arguments> mistakes() {
    return Stream.of(
        mistake(config -> config.string("nope"), "nope: expected a string, found nothing"),
        mistake(config -> config.string("count"), "count: expected a string, found the number 3"),
        mistake(config -> config.string("on", "x"), "on: expected a string, found the truth value true"),
        mistake(config -> config.integer("text"), "text: expected a whole number, found a string"),
        mistake(config -> config.integer("ratio"), "ratio: expected a whole number, found the number 0.5"),
        mistake(
            config -> config.integer("large", 1),
            "large: expected a whole number, found the number 1.8014398509481984E16"),
        mistake(config -> config.bool("names"), "names: expected true or false, found a list"),
        mistake(config -> config.list("text"), "text: expected a list of strings, found a string"),
        mistake(config -> config.list("nope"), "nope: expected a list of strings, found nothing"),
        mistake(config -> config.list("mixed"), "mixed.1: expected a string, found the number 1"),
        mistake(config -> config.list("holes"), "holes.1: expected a string, found nothing"),
        mistake(config -> config.path("limits"), "limits: expected a file name, found a map"),
        mistake(
            config -> config.path("text", null).resolve(config.path("nope")),
            "nope: expected a file name, found nothing"),
        mistake(config -> config.map("text"), "text: expected a map, found a string"),
        mistake(
            config -> config.section("limits").integer("burst"),
            "limits.burst: expected a whole number, found a string"));
  }

  private static Arguments mistake(Function<Config, Object> read, String message) {
    return Arguments.of(read, message);
  }

  @ParameterizedTest(name = "{1}")
  @MethodSource("mistakes")
  void a_mistake_names_the_key_and_what_was_found(Function<Config, Object> read, String message) {
    ConfigException thrown = assertThrows(ConfigException.class, () -> read.apply(CONFIG));
    assertEquals(message, thrown.getMessage());
  }

  @Test
  void values_have_types() {
    assertEquals("hello", CONFIG.string("text"));
    assertEquals(3, CONFIG.integer("count"));
    assertEquals(0.5, CONFIG.number("ratio"));
    assertTrue(CONFIG.bool("on"));
    assertEquals(List.of("a", "b"), CONFIG.list("names"));
    assertEquals(Path.of("hello"), CONFIG.path("text"));
    assertEquals(7, CONFIG.section("limits").integer("rate"));
    assertEquals(Map.of("rate", 7.0, "burst", "many"), CONFIG.map("limits"));
  }

  @Test
  void a_list_tolerates_the_question_for_null() {
    assertFalse(CONFIG.list("names").contains(null));
  }

  @Test
  void a_missing_value_and_a_null_give_the_default() {
    Map<String, Object> nothing = new HashMap<>();
    nothing.put("null", null);
    Config config = Config.of(nothing);
    for (String key : List.of("null", "missing")) {
      assertFalse(config.has(key));
      assertEquals("x", config.string(key, "x"));
      assertNull(config.string(key, null));
      assertEquals(5, config.integer(key, 5));
      assertTrue(config.bool(key, true));
      assertEquals(List.of("z"), config.list(key, List.of("z")));
      assertEquals(Path.of("p"), config.path(key, Path.of("p")));
    }
  }

  @Test
  void text_does_not_show_values() {
    assertEquals("Config[password]", Config.of(Map.of("password", "hunter2")).toString());
  }
}
