package io.palisade.plugin;

import java.io.ByteArrayInputStream;
import java.security.cert.CertificateException;
import java.security.cert.CertificateFactory;
import java.security.cert.X509Certificate;
import java.util.ArrayList;
import java.util.List;

/** What is known of the TLS connection that a request came in by. Immutable. */
public final class TlsFacts {

  private final String serverName;
  private final String alpn;
  private final String version;
  private final List<byte[]> peerCertificates;

  private TlsFacts(String serverName, String alpn, String version, List<byte[]> peerCertificates) {
    this.serverName = serverName;
    this.alpn = alpn;
    this.version = version;
    this.peerCertificates = peerCertificates.stream().map(byte[]::clone).toList();
  }

  /**
   * Makes facts, as tests need them.
   *
   * @param serverName the server name that the client asked for, empty without one
   * @param alpn {@code "h2"}, {@code "http/1.1"} or empty
   * @param version {@code "TLSv1.2"} or {@code "TLSv1.3"}
   * @param peerCertificates DER of the client's verified chain, leaf first; empty without one
   * @return the facts
   */
  public static TlsFacts of(
      String serverName, String alpn, String version, List<byte[]> peerCertificates) {
    return new TlsFacts(serverName, alpn, version, peerCertificates);
  }

  /**
   * The server name (SNI) that the client asked for.
   *
   * @return lower case; empty without one
   */
  public String serverName() {
    return serverName;
  }

  /**
   * The protocol that ALPN chose.
   *
   * @return {@code "h2"}, {@code "http/1.1"} or empty
   */
  public String alpn() {
    return alpn;
  }

  /**
   * The version of TLS.
   *
   * @return {@code "TLSv1.2"} or {@code "TLSv1.3"}
   */
  public String version() {
    return version;
  }

  /**
   * The client's verified certificate chain. Always empty unless the plugin {@linkplain Plugin#needs needs}
   * {@link Needs.Part#PEER_CERTIFICATE}.
   *
   * @return copies of the DER, leaf first; empty if the client showed none
   */
  public List<byte[]> peerCertificates() {
    return peerCertificates.stream().map(byte[]::clone).toList();
  }

  /**
   * The client's verified certificate chain, parsed.
   *
   * @return as {@link #peerCertificates()}
   * @throws CertificateException if one can't be parsed
   */
  public List<X509Certificate> peerX509Certificates() throws CertificateException {
    CertificateFactory factory = CertificateFactory.getInstance("X.509");
    List<X509Certificate> parsed = new ArrayList<>(peerCertificates.size());
    for (byte[] der : peerCertificates) {
      parsed.add((X509Certificate) factory.generateCertificate(new ByteArrayInputStream(der)));
    }
    return List.copyOf(parsed);
  }

  @Override
  public String toString() {
    return "TlsFacts[" + serverName + ", " + alpn + ", " + version + "]";
  }
}
