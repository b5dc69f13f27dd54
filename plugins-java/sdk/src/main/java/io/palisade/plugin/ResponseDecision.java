package io.palisade.plugin;

import java.util.ArrayList;
import java.util.List;

/**
 * What becomes of a response. Immutable: methods that add something give a new decision. Made by {@link #pass()} and
 * {@link #replace(int, String)}, which read best as static imports.
 */
public sealed interface ResponseDecision permits ResponseDecision.Pass, Reply {

  /**
   * Lets the response go on to the client; its status and body stay as they are.
   *
   * @return a decision without changes
   */
  static Pass pass() {
    return Pass.UNCHANGED;
  }

  /**
   * Discards the response and sends another.
   *
   * @param status 200 to 599
   * @param text the body, sent as UTF-8; with {@code content-type: text/plain; charset=utf-8} unless it is empty or the
   *     reply gets another content type
   * @return a decision whose headers can still be given
   * @throws IllegalArgumentException if HTTP has no such reply: see {@link Reply}
   */
  static Reply replace(int status, String text) {
    return Reply.of(status, text);
  }

  /**
   * Discards the response and sends another.
   *
   * @param status 200 to 599
   * @param body the body, copied; without a content type unless the reply gets one
   * @return a decision whose headers can still be given
   * @throws IllegalArgumentException if HTTP has no such reply: see {@link Reply}
   */
  static Reply replace(int status, byte[] body) {
    return Reply.of(status, body);
  }

  /**
   * The response goes on, perhaps with other headers. Each method throws {@link IllegalArgumentException} for a name or
   * value that no header can have, and for headers that belong to the connection ({@code content-length},
   * {@code transfer-encoding}, ...).
   */
  final class Pass implements ResponseDecision {

    private static final Pass UNCHANGED = new Pass(List.of());

    private final List<HeaderChange> changes;

    private Pass(List<HeaderChange> changes) {
      this.changes = changes;
    }

    /**
     * Gives the response one line of a header in place of all it has.
     *
     * @param name the header's name
     * @param value its value, written as UTF-8
     * @return a decision that does so too
     */
    public Pass setHeader(String name, String value) {
      return change(HeaderChange.set(name, value));
    }

    /**
     * Gives the response a further line of a header.
     *
     * @param name the header's name
     * @param value its value, written as UTF-8
     * @return a decision that does so too
     */
    public Pass addHeader(String name, String value) {
      return change(HeaderChange.add(name, value));
    }

    /**
     * Takes every line of a header from the response.
     *
     * @param name the header's name
     * @return a decision that does so too
     */
    public Pass removeHeader(String name) {
      return change(new HeaderChange.Remove(name));
    }

    /**
     * Changes the response, also to values that are not text.
     *
     * @param change the change
     * @return a decision that makes it too
     */
    public Pass change(HeaderChange change) {
      List<HeaderChange> all = new ArrayList<>(changes.size() + 1);
      all.addAll(changes);
      all.add(change);
      return new Pass(List.copyOf(all));
    }

    /**
     * Changes to the response.
     *
     * @return in the order in which they are made
     */
    public List<HeaderChange> changes() {
      return changes;
    }

    @Override
    public boolean equals(Object other) {
      return other instanceof Pass that && changes.equals(that.changes);
    }

    @Override
    public int hashCode() {
      return changes.hashCode();
    }

    @Override
    public String toString() {
      return "Pass" + changes;
    }
  }
}
