package io.palisade.plugin;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Locale;
import java.util.Objects;

/** One header field line. Immutable. */
public final class Header {

  private final String name;
  private final byte[] value;

  private Header(String name, byte[] value) {
    this.name = name;
    this.value = value;
  }

  /**
   * Makes a header with text for a value.
   *
   * @param name its name; upper case becomes lower case
   * @param value its value, written as UTF-8
   * @return the header
   */
  public static Header of(String name, String value) {
    return new Header(name.toLowerCase(Locale.ROOT), value.getBytes(StandardCharsets.UTF_8));
  }

  /**
   * Makes a header with any bytes for a value.
   *
   * @param name its name; upper case becomes lower case
   * @param value its value, copied
   * @return the header
   */
  public static Header of(String name, byte[] value) {
    return new Header(name.toLowerCase(Locale.ROOT), value.clone());
  }

  /**
   * The name.
   *
   * @return lower case
   */
  public String name() {
    return name;
  }

  /**
   * The value as text.
   *
   * @return the bytes read as UTF-8, with U+FFFD for those that are not: such a value equals no text without U+FFFD.
   *     {@link #bytes()} tells different ones apart
   */
  public String value() {
    return new String(value, StandardCharsets.UTF_8);
  }

  /**
   * The value as it was on the wire.
   *
   * @return a copy
   */
  public byte[] bytes() {
    return value.clone();
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof Header that
        && name.equals(that.name)
        && Arrays.equals(value, that.value);
  }

  @Override
  public int hashCode() {
    return Objects.hash(name, Arrays.hashCode(value));
  }

  /** Names the header only: its value may be a secret. */
  @Override
  public String toString() {
    return "Header[" + name + "]";
  }
}
