package io.palisade.plugin;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;

/**
 * An answer that a plugin makes in place of the upstream: the {@link Decision} to deny a request, or the
 * {@link ResponseDecision} to replace a response. Immutable. Its status is 200 to 599, its body at most 1 MiB, and
 * empty for status 204, 205 and 304; anything else is an {@link IllegalArgumentException} where it is made.
 */
public final class Reply implements Decision, ResponseDecision {

  /** What the proxy takes. */
  private static final int LARGEST_BODY = 1 << 20;

  private static final Header TEXT = Header.of("content-type", "text/plain; charset=utf-8");

  private final int status;
  private final List<Header> headers;
  private final byte[] body;
  private final boolean isText;

  private Reply(int status, List<Header> headers, byte[] body, boolean isText) {
    this.status = status;
    this.headers = headers;
    this.body = body;
    this.isText = isText;
  }

  static Reply of(int status, String text) {
    return checked(status, text.getBytes(StandardCharsets.UTF_8), !text.isEmpty());
  }

  static Reply of(int status, byte[] body) {
    return checked(status, body.clone(), false);
  }

  private static Reply checked(int status, byte[] body, boolean isText) {
    if (status < 200 || status > 599) {
      throw new IllegalArgumentException("the status of a reply is 200 to 599, not " + status);
    }
    if (body.length > LARGEST_BODY) {
      throw new IllegalArgumentException(
          "the body of a reply has at most " + LARGEST_BODY + " bytes, not " + body.length);
    }
    if (body.length > 0 && (status == 204 || status == 205 || status == 304)) {
      throw new IllegalArgumentException("a reply with status " + status + " has no body");
    }
    return new Reply(status, List.of(), body, isText);
  }

  /**
   * Adds a header.
   *
   * @param name the header's name
   * @param value its value, written as UTF-8
   * @return a reply that has it too
   * @throws IllegalArgumentException if no header can be so, or it belongs to the connection ({@code content-length},
   *     {@code transfer-encoding}, ...)
   */
  public Reply header(String name, String value) {
    return header(Header.of(name, value));
  }

  /**
   * Adds a header.
   *
   * @param header the header
   * @return a reply that has it too
   * @throws IllegalArgumentException if no header can be so, or it belongs to the connection ({@code content-length},
   *     {@code transfer-encoding}, ...)
   */
  public Reply header(Header header) {
    HeaderRules.check(header);
    List<Header> all = new ArrayList<>(headers.size() + 1);
    all.addAll(headers);
    all.add(header);
    return new Reply(status, List.copyOf(all), body, isText);
  }

  /**
   * The status.
   *
   * @return 200 to 599
   */
  public int status() {
    return status;
  }

  /**
   * The headers, with the content type that a text has of itself.
   *
   * @return the headers in order
   */
  public Headers headers() {
    boolean typed = headers.stream().anyMatch(header -> header.name().equals(TEXT.name()));
    if (typed || !isText) {
      return Headers.of(headers);
    }
    List<Header> all = new ArrayList<>(headers.size() + 1);
    all.add(TEXT);
    all.addAll(headers);
    return Headers.of(all);
  }

  /**
   * The body.
   *
   * @return a copy, at most 1 MiB
   */
  public byte[] body() {
    return body.clone();
  }

  /**
   * The body as text.
   *
   * @return the body read as UTF-8
   */
  public String text() {
    return new String(body, StandardCharsets.UTF_8);
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof Reply that
        && status == that.status
        && headers().equals(that.headers())
        && Arrays.equals(body, that.body);
  }

  @Override
  public int hashCode() {
    return Objects.hash(status, headers(), Arrays.hashCode(body));
  }

  @Override
  public String toString() {
    return "Reply[" + status + ", " + headers() + ", " + body.length + " bytes]";
  }
}
