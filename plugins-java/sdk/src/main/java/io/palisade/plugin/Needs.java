package io.palisade.plugin;

import java.util.Collections;
import java.util.EnumSet;
import java.util.Set;

/**
 * The parts of a request that a filter wants to see; asking for less is faster. The request line, the listener's name
 * and the request's id are always sent. Immutable.
 */
public final class Needs {

  private static final Needs STANDARD =
      new Needs(EnumSet.of(Part.HEADERS, Part.ADDRESSES, Part.TLS, Part.ROUTE), 0);

  private final Set<Part> parts;
  private final long maxBodyBytes;

  private Needs(EnumSet<Part> parts, long maxBodyBytes) {
    this.parts = Collections.unmodifiableSet(parts);
    this.maxBodyBytes = maxBodyBytes;
  }

  /** A part of a request. */
  public enum Part {
    /** {@link Request#headers()}. */
    HEADERS,
    /** {@link Request#peer()} and {@link Request#local()}. */
    ADDRESSES,
    /** {@link Request#tls()}, without the client's certificate. */
    TLS,
    /** {@link TlsFacts#peerCertificates()}. */
    PEER_CERTIFICATE,
    /** {@link Request#route()}. */
    ROUTE,
    /** {@link Request#body()}. */
    BODY
  }

  /**
   * What a filter gets that does not say what it needs.
   *
   * @return headers, addresses, TLS and route
   */
  public static Needs standard() {
    return STANDARD;
  }

  /**
   * Only these parts.
   *
   * @param first one part; the contract has no way to ask for none
   * @param more further parts
   * @return the parts; of a body, as large as the proxy allows
   */
  public static Needs only(Part first, Part... more) {
    return new Needs(EnumSet.of(first, more), 0);
  }

  /**
   * The {@link #standard()} parts and the body.
   *
   * @param maxBytes the largest body, in bytes, that the filter will judge; the proxy's own limit applies too, and a
   *     larger body is refused with 413 before the filter sees the request. 0: the proxy's limit
   * @return the parts
   * @throws IllegalArgumentException if {@code maxBytes} is negative
   */
  public static Needs body(long maxBytes) {
    return STANDARD.withBody(maxBytes);
  }

  /**
   * These parts and others.
   *
   * @param more further parts
   * @return all of them
   */
  public Needs with(Part... more) {
    EnumSet<Part> all = EnumSet.copyOf(parts);
    Collections.addAll(all, more);
    return new Needs(all, maxBodyBytes);
  }

  /**
   * These parts and the body.
   *
   * @param maxBytes as for {@link #body}
   * @return all of them
   * @throws IllegalArgumentException if {@code maxBytes} is negative
   */
  public Needs withBody(long maxBytes) {
    if (maxBytes < 0) {
      throw new IllegalArgumentException("maxBytes is negative: " + maxBytes);
    }
    EnumSet<Part> all = EnumSet.copyOf(parts);
    all.add(Part.BODY);
    return new Needs(all, maxBytes);
  }

  /**
   * The parts.
   *
   * @return an unmodifiable set
   */
  public Set<Part> parts() {
    return parts;
  }

  /**
   * The largest body that the filter will judge.
   *
   * @return bytes; 0: the proxy's limit
   */
  public long maxBodyBytes() {
    return maxBodyBytes;
  }

  @Override
  public String toString() {
    return "Needs" + parts;
  }
}
