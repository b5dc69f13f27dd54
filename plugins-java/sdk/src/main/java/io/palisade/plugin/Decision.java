package io.palisade.plugin;

import java.util.ArrayList;
import java.util.List;

/**
 * What becomes of a request. Immutable: methods that add something give a new decision. Made by {@link #allow()} and
 * {@link #deny(int, String)}, which read best as static imports.
 */
public sealed interface Decision permits Decision.Allow, Reply {

  /**
   * Lets the request go on.
   *
   * @return a decision without changes
   */
  static Allow allow() {
    return Allow.UNCHANGED;
  }

  /**
   * Answers the request in place of the upstream.
   *
   * @param status 200 to 599
   * @param text the body, sent as UTF-8; with {@code content-type: text/plain; charset=utf-8} unless it is empty or the
   *     reply gets another content type
   * @return a decision whose headers can still be given
   * @throws IllegalArgumentException if HTTP has no such reply: see {@link Reply}
   */
  static Reply deny(int status, String text) {
    return Reply.of(status, text);
  }

  /**
   * Answers the request in place of the upstream, without a body.
   *
   * @param status 200 to 599
   * @return a decision whose headers can still be given
   * @throws IllegalArgumentException if the status is another
   */
  static Reply deny(int status) {
    return Reply.of(status, new byte[0]);
  }

  /**
   * Answers the request in place of the upstream.
   *
   * @param status 200 to 599
   * @param body the body, copied; without a content type unless the reply gets one
   * @return a decision whose headers can still be given
   * @throws IllegalArgumentException if HTTP has no such reply: see {@link Reply}
   */
  static Reply deny(int status, byte[] body) {
    return Reply.of(status, body);
  }

  /**
   * The request goes on, perhaps changed. Each method throws {@link IllegalArgumentException} for a name or value that
   * no header can have, and for headers that belong to the connection ({@code content-length},
   * {@code transfer-encoding}, ...) or, of a request, {@code host}.
   */
  final class Allow implements Decision {

    private static final Allow UNCHANGED = new Allow(List.of(), List.of());

    private final List<HeaderChange> requestChanges;
    private final List<HeaderChange> responseChanges;

    private Allow(List<HeaderChange> requestChanges, List<HeaderChange> responseChanges) {
      this.requestChanges = requestChanges;
      this.responseChanges = responseChanges;
    }

    /**
     * Gives the request one line of a header in place of all it has.
     *
     * @param name the header's name
     * @param value its value, written as UTF-8
     * @return a decision that does so too
     */
    public Allow setHeader(String name, String value) {
      return request(HeaderChange.set(name, value));
    }

    /**
     * Gives the request a further line of a header.
     *
     * @param name the header's name
     * @param value its value, written as UTF-8
     * @return a decision that does so too
     */
    public Allow addHeader(String name, String value) {
      return request(HeaderChange.add(name, value));
    }

    /**
     * Takes every line of a header from the request.
     *
     * @param name the header's name
     * @return a decision that does so too
     */
    public Allow removeHeader(String name) {
      return request(new HeaderChange.Remove(name));
    }

    /**
     * Gives the response, whoever makes it, one line of a header in place of all it has.
     *
     * @param name the header's name
     * @param value its value, written as UTF-8
     * @return a decision that does so too
     */
    public Allow responseHeader(String name, String value) {
      return response(HeaderChange.set(name, value));
    }

    /**
     * Gives the response, whoever makes it, a further line of a header.
     *
     * @param name the header's name
     * @param value its value, written as UTF-8
     * @return a decision that does so too
     */
    public Allow addResponseHeader(String name, String value) {
      return response(HeaderChange.add(name, value));
    }

    /**
     * Takes every line of a header from the response, whoever makes it.
     *
     * @param name the header's name
     * @return a decision that does so too
     */
    public Allow removeResponseHeader(String name) {
      return response(new HeaderChange.Remove(name));
    }

    /**
     * Changes the request, also to values that are not text.
     *
     * @param change the change
     * @return a decision that makes it too
     */
    public Allow request(HeaderChange change) {
      HeaderRules.checkForRequest(change);
      return new Allow(plus(requestChanges, change), responseChanges);
    }

    /**
     * Changes the response, also to values that are not text.
     *
     * @param change the change
     * @return a decision that makes it too
     */
    public Allow response(HeaderChange change) {
      return new Allow(requestChanges, plus(responseChanges, change));
    }

    /**
     * Changes to the request before the next filter and the upstream see it.
     *
     * @return in the order in which they are made
     */
    public List<HeaderChange> requestChanges() {
      return requestChanges;
    }

    /**
     * Changes to the response once it is there.
     *
     * @return in the order in which they are made
     */
    public List<HeaderChange> responseChanges() {
      return responseChanges;
    }

    @Override
    public boolean equals(Object other) {
      return other instanceof Allow that
          && requestChanges.equals(that.requestChanges)
          && responseChanges.equals(that.responseChanges);
    }

    @Override
    public int hashCode() {
      return 31 * requestChanges.hashCode() + responseChanges.hashCode();
    }

    @Override
    public String toString() {
      return "Allow[request=" + requestChanges + ", response=" + responseChanges + "]";
    }
  }

  private static List<HeaderChange> plus(List<HeaderChange> changes, HeaderChange change) {
    List<HeaderChange> all = new ArrayList<>(changes.size() + 1);
    all.addAll(changes);
    all.add(change);
    return List.copyOf(all);
  }
}
