package io.palisade.plugin;

import java.util.Iterator;
import java.util.List;
import java.util.Locale;

/**
 * The header lines of a request or response with every duplicate: names in the order in which they first came, the
 * values of one name together and in their order. Immutable. Names are
 * looked up without regard to case.
 */
public final class Headers implements Iterable<Header> {

  private final List<Header> lines;

  private Headers(List<Header> lines) {
    this.lines = lines;
  }

  /**
   * Makes a list of headers.
   *
   * @param lines the headers, copied
   * @return the same headers in the same order
   */
  public static Headers of(List<Header> lines) {
    return new Headers(List.copyOf(lines));
  }

  /**
   * The first value of a header as text. A client may send a header more than once: look at {@link #all} where that
   * matters.
   *
   * @param name the header's name
   * @return as {@link Header#value()}, or {@code null} if there is no such header
   */
  public String first(String name) {
    String wanted = name.toLowerCase(Locale.ROOT);
    for (Header line : lines) {
      if (line.name().equals(wanted)) {
        return line.value();
      }
    }
    return null;
  }

  /**
   * All values of a header as text.
   *
   * @param name the header's name
   * @return each as {@link Header#value()}, in order; empty if there is no such header
   */
  public List<String> all(String name) {
    String wanted = name.toLowerCase(Locale.ROOT);
    return lines.stream().filter(line -> line.name().equals(wanted)).map(Header::value).toList();
  }

  /**
   * Whether there is a header.
   *
   * @param name the header's name
   * @return whether at least one line has this name
   */
  public boolean contains(String name) {
    String wanted = name.toLowerCase(Locale.ROOT);
    return lines.stream().anyMatch(line -> line.name().equals(wanted));
  }

  /**
   * All lines.
   *
   * @return unmodifiable, in the order of this class
   */
  public List<Header> list() {
    return lines;
  }

  @Override
  public Iterator<Header> iterator() {
    return lines.iterator();
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof Headers that && lines.equals(that.lines);
  }

  @Override
  public int hashCode() {
    return lines.hashCode();
  }

  /** Names the headers only: values may be secrets. */
  @Override
  public String toString() {
    return "Headers" + lines.stream().map(Header::name).toList();
  }
}
