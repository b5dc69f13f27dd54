package io.palisade.plugin;

import java.util.Locale;

/** One change to the headers of a request or response. Changes are made in the order in which they were given. */
public sealed interface HeaderChange {

  /**
   * Removes every line of the header's name, then adds this one.
   *
   * @param header the new line
   */
  record Set(Header header) implements HeaderChange {
    /**
     * Makes a change.
     *
     * @param header the new line
     * @throws IllegalArgumentException if HTTP has no such header, or it belongs to the connection
     */
    public Set {
      HeaderRules.check(header);
    }
  }

  /**
   * Adds a line behind those that are there.
   *
   * @param header the new line
   */
  record Add(Header header) implements HeaderChange {
    /**
     * Makes a change.
     *
     * @param header the new line
     * @throws IllegalArgumentException if HTTP has no such header, or it belongs to the connection
     */
    public Add {
      HeaderRules.check(header);
    }
  }

  /**
   * Removes every line of one name.
   *
   * @param name the header's name; upper case becomes lower case
   */
  record Remove(String name) implements HeaderChange {
    /**
     * Makes a change.
     *
     * @param name the header's name
     * @throws IllegalArgumentException if HTTP has no such header, or it belongs to the connection
     */
    public Remove {
      name = name.toLowerCase(Locale.ROOT);
      HeaderRules.check(Header.of(name, new byte[0]));
    }

    @Override
    public String toString() {
      return "Remove[" + name + "]";
    }
  }


  /**
   * Makes a {@link Set}.
   *
   * @param name the header's name
   * @param value its only value, written as UTF-8
   * @return the change
   */
  static HeaderChange set(String name, String value) {
    return new Set(Header.of(name, value));
  }

  /**
   * Makes an {@link Add}.
   *
   * @param name the header's name
   * @param value its further value, written as UTF-8
   * @return the change
   */
  static HeaderChange add(String name, String value) {
    return new Add(Header.of(name, value));
  }
}
