package io.palisade.plugin;

import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.function.Supplier;

/**
 * The {@code config:} value of a plugin in the proxy's configuration file. Immutable.
 *
 * <p>Every method that reads a value throws {@link ConfigException}, naming the key and what was found, when the value
 * has another type; those without a default also when it is missing. A {@code null} in the file is as good as a
 * missing value.
 */
public final class Config {

  /** Beyond this, doubles skip integers, so what was written is not known. */
  private static final double LARGEST_EXACT_INTEGER = 0x1p53;

  private final String prefix;
  private final Map<String, Object> values;

  private Config(String prefix, Map<String, Object> values) {
    this.prefix = prefix;
    this.values = values;
  }

  /**
   * Makes a configuration, as tests need it.
   *
   * @param values keys and values: strings, numbers, booleans, {@code null}, and lists and maps (with string keys) of
   *     them
   * @return the configuration, a deep copy
   * @throws IllegalArgumentException if a value is of another type
   */
  public static Config of(Map<String, ?> values) {
    return new Config("", copyOfMap(values));
  }

  /**
   * Whether a key has a value.
   *
   * @param key the key
   * @return whether it is there and not {@code null}
   */
  public boolean has(String key) {
    return values.get(key) != null;
  }

  /**
   * Reads text.
   *
   * @param key the key
   * @return its value
   */
  public String string(String key) {
    return cast(key, String.class, "a string");
  }

  /**
   * Reads text.
   *
   * @param key the key
   * @param fallback what to give when there is no value; may be {@code null}
   * @return its value, or the fallback
   */
  public String string(String key, String fallback) {
    return or(key, () -> string(key), fallback);
  }

  /**
   * Reads a whole number.
   *
   * @param key the key
   * @return its value, between -2^53 and 2^53
   */
  public long integer(String key) {
    Number number = cast(key, Number.class, "a whole number");
    double value = number.doubleValue();
    if (value != Math.rint(value) || Math.abs(value) > LARGEST_EXACT_INTEGER) {
      throw mismatch(key, "a whole number");
    }
    return (long) value;
  }

  /**
   * Reads a whole number.
   *
   * @param key the key
   * @param fallback what to give when there is no value
   * @return its value, or the fallback
   */
  public long integer(String key, long fallback) {
    return has(key) ? integer(key) : fallback;
  }

  /**
   * Reads a number.
   *
   * @param key the key
   * @return its value
   */
  public double number(String key) {
    return cast(key, Number.class, "a number").doubleValue();
  }

  /**
   * Reads a number.
   *
   * @param key the key
   * @param fallback what to give when there is no value
   * @return its value, or the fallback
   */
  public double number(String key, double fallback) {
    return has(key) ? number(key) : fallback;
  }

  /**
   * Reads a truth value.
   *
   * @param key the key
   * @return its value
   */
  public boolean bool(String key) {
    return cast(key, Boolean.class, "true or false");
  }

  /**
   * Reads a truth value.
   *
   * @param key the key
   * @param fallback what to give when there is no value
   * @return its value, or the fallback
   */
  public boolean bool(String key, boolean fallback) {
    return has(key) ? bool(key) : fallback;
  }

  /**
   * Reads a list of strings.
   *
   * @param key the key
   * @return its value, unmodifiable; {@code contains(null)} on it is {@code false}
   */
  public List<String> list(String key) {
    List<?> found = cast(key, List.class, "a list of strings");
    List<String> strings = new ArrayList<>(found.size());
    for (int i = 0; i < found.size(); i++) {
      if (!(found.get(i) instanceof String string)) {
        throw new ConfigException(
            prefix + key + "." + i, "expected a string, found " + describe(found.get(i)));
      }
      strings.add(string);
    }
    return Collections.unmodifiableList(strings);
  }

  /**
   * Reads a list of strings.
   *
   * @param key the key
   * @param fallback what to give when there is no value; may be {@code null}
   * @return its value, or the fallback
   */
  public List<String> list(String key, List<String> fallback) {
    return or(key, () -> list(key), fallback);
  }

  /**
   * Reads a file name. A relative one is meant from the plugin's working directory.
   *
   * @param key the key
   * @return its value; the file need not exist
   */
  public Path path(String key) {
    String text = cast(key, String.class, "a file name");
    try {
      return Path.of(text);
    } catch (InvalidPathException e) {
      throw new ConfigException(prefix + key, "expected a file name, found " + describe(text));
    }
  }

  /**
   * Reads a file name.
   *
   * @param key the key
   * @param fallback what to give when there is no value; may be {@code null}
   * @return its value, or the fallback
   */
  public Path path(String key, Path fallback) {
    return or(key, () -> path(key), fallback);
  }

  /**
   * Reads a nested map as a configuration of its own, whose errors name the whole way to a value
   * ({@code "limits.rate"}).
   *
   * @param key the key
   * @return its value
   */
  public Config section(String key) {
    @SuppressWarnings("unchecked") // Maps in here were made by copyOfMap.
    Map<String, Object> section = cast(key, Map.class, "a map");
    return new Config(prefix + key + ".", section);
  }

  /**
   * Reads a nested map as it is.
   *
   * @param key the key
   * @return its value, unmodifiable, of the same types as {@link #asMap()}
   */
  public Map<String, Object> map(String key) {
    return section(key).asMap();
  }

  /**
   * All keys and values.
   *
   * @return an unmodifiable map of {@link String}, {@link Number}, {@link Boolean}, {@code null}, and unmodifiable
   *     {@link List}s and {@link Map}s of them; numbers that came from the proxy are {@link Double}s
   */
  public Map<String, Object> asMap() {
    return values;
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof Config that && values.equals(that.values);
  }

  @Override
  public int hashCode() {
    return values.hashCode();
  }

  /** Names the keys only: values may be secrets. */
  @Override
  public String toString() {
    return "Config" + values.keySet();
  }

  private <T> T or(String key, Supplier<T> read, T fallback) {
    return has(key) ? read.get() : fallback;
  }

  private <T> T cast(String key, Class<T> type, String expected) {
    Object value = values.get(Objects.requireNonNull(key, "key"));
    if (!type.isInstance(value)) {
      throw mismatch(key, expected);
    }
    return type.cast(value);
  }

  private ConfigException mismatch(String key, String expected) {
    return new ConfigException(
        prefix + key, "expected " + expected + ", found " + describe(values.get(key)));
  }

  private static String describe(Object value) {
    if (value == null) {
      return "nothing";
    }
    if (value instanceof String) {
      return "a string"; // Perhaps a secret under the wrong key.
    }
    if (value instanceof Number number) {
      double number64 = number.doubleValue();
      boolean whole = number64 == Math.rint(number64) && Math.abs(number64) <= LARGEST_EXACT_INTEGER;
      return "the number " + (whole ? Long.toString((long) number64) : number.toString());
    }
    if (value instanceof Boolean) {
      return "the truth value " + value;
    }
    return value instanceof List ? "a list" : "a map";
  }

  private static Map<String, Object> copyOfMap(Map<?, ?> values) {
    Map<String, Object> copy = new LinkedHashMap<>();
    values.forEach(
        (key, value) -> {
          if (!(key instanceof String string)) {
            throw new IllegalArgumentException("keys of a configuration are strings, not " + key);
          }
          copy.put(string, copyOf(value));
        });
    return Collections.unmodifiableMap(copy);
  }

  private static Object copyOf(Object value) {
    if (value == null
        || value instanceof String
        || value instanceof Number
        || value instanceof Boolean) {
      return value;
    }
    if (value instanceof List<?> list) {
      List<Object> copy = new ArrayList<>(list.size());
      list.forEach(element -> copy.add(copyOf(element)));
      return Collections.unmodifiableList(copy);
    }
    if (value instanceof Map<?, ?> map) {
      return copyOfMap(map);
    }
    throw new IllegalArgumentException(
        "values of a configuration are strings, numbers, booleans, lists and maps, not "
            + value.getClass().getName());
  }
}
