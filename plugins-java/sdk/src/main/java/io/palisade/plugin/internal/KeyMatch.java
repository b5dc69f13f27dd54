package io.palisade.plugin.internal;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.PrivateKey;
import java.security.PublicKey;
import java.security.Signature;
import java.security.cert.CertificateFactory;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.Arrays;
import java.util.Base64;
import java.util.Optional;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Whether a private key belongs to a certificate. While two files are being replaced, one of them is of the old pair;
 * sending that to the host would be no use.
 */
public final class KeyMatch {

  private static final Pattern KEY =
      Pattern.compile(
          "-----BEGIN (|RSA |EC )PRIVATE KEY-----([A-Za-z0-9+/=\\s]+)-----END \\1PRIVATE KEY-----");

  private static final String MISMATCH = "the key does not belong to the certificate";

  private static final int SEQUENCE = 0x30;
  private static final int OCTET_STRING = 0x04;
  private static final byte[] VERSION_0 = {0x02, 0x01, 0x00};

  private KeyMatch() {}

  /**
   * Says why the pair can't be used.
   *
   * @param chainPem a certificate chain, leaf first
   * @param keyPem a private key: PKCS#8, PKCS#1 or SEC1
   * @return what is wrong; empty if the key belongs to the leaf, or is of a kind that Java does not know
   */
  public static Optional<String> problem(byte[] chainPem, byte[] keyPem) {
    PublicKey certified;
    try {
      certified =
          CertificateFactory.getInstance("X.509")
              .generateCertificate(new ByteArrayInputStream(chainPem))
              .getPublicKey();
    } catch (GeneralSecurityException e) {
      return Optional.of("the certificate can't be parsed: " + e.getMessage());
    }
    Optional<String> algorithm = signatureAlgorithm(certified);
    if (algorithm.isEmpty()) {
      return Optional.empty();
    }
    try {
      Signature signature = Signature.getInstance(algorithm.get());
      byte[] subject = {1};
      signature.initSign(privateKey(keyPem, certified));
      signature.update(subject);
      byte[] signed = signature.sign();
      signature.initVerify(certified);
      signature.update(subject);
      return signature.verify(signed) ? Optional.empty() : Optional.of(MISMATCH);
    } catch (GeneralSecurityException | IllegalArgumentException | IndexOutOfBoundsException e) {
      return Optional.of(MISMATCH);
    }
  }

  private static Optional<String> signatureAlgorithm(PublicKey key) {
    return switch (key.getAlgorithm()) {
      case "RSA" -> Optional.of("SHA256withRSA");
      case "EC" -> Optional.of("SHA256withECDSA");
      case "EdDSA", "Ed25519", "Ed448" -> Optional.of("EdDSA");
      default -> Optional.empty();
    };
  }

  private static PrivateKey privateKey(byte[] pem, PublicKey certified)
      throws GeneralSecurityException {
    Matcher key = KEY.matcher(new String(pem, StandardCharsets.ISO_8859_1));
    if (!key.find()) {
      throw new IllegalArgumentException("no private key in PEM");
    }
    byte[] der = Base64.getMimeDecoder().decode(key.group(2));
    byte[] pkcs8 =
        switch (key.group(1)) {
          case "RSA " -> pkcs8(der, certified);
          case "EC " -> pkcs8(withoutCurve(der), certified);
          default -> der;
        };
    return KeyFactory.getInstance(certified.getAlgorithm())
        .generatePrivate(new PKCS8EncodedKeySpec(pkcs8));
  }

  /**
   * PKCS#8 (RFC 5208: version, algorithm, key) around a PKCS#1 or SEC1 key. The algorithm, with the curve that SEC1 may
   * leave out, is what the certificate's key begins with (RFC 5280, SubjectPublicKeyInfo).
   */
  private static byte[] pkcs8(byte[] key, PublicKey certified) {
    byte[] algorithm = firstElement(contents(certified.getEncoded()));
    return element(SEQUENCE, VERSION_0, algorithm, element(OCTET_STRING, key));
  }

  /** A SEC1 key (RFC 5915) down to version and number: inside PKCS#8, JDK 17 does not expect the curve again. */
  private static byte[] withoutCurve(byte[] key) {
    byte[] contents = contents(key);
    byte[] version = firstElement(contents);
    byte[] number = firstElement(Arrays.copyOfRange(contents, version.length, contents.length));
    return element(SEQUENCE, version, number);
  }

  private static byte[] element(int tag, byte[]... parts) {
    ByteArrayOutputStream contents = new ByteArrayOutputStream();
    for (byte[] part : parts) {
      contents.writeBytes(part);
    }
    int length = contents.size();
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    out.write(tag);
    if (length < 0x80) {
      out.write(length);
    } else {
      out.write(0x82);
      out.write(length >> 8);
      out.write(length);
    }
    out.writeBytes(contents.toByteArray());
    return out.toByteArray();
  }

  private static byte[] contents(byte[] element) {
    return Arrays.copyOfRange(element, headerLength(element), element.length);
  }

  private static byte[] firstElement(byte[] elements) {
    return Arrays.copyOfRange(elements, 0, headerLength(elements) + contentLength(elements));
  }

  private static int headerLength(byte[] element) {
    return (element[1] & 0x80) == 0 ? 2 : 2 + (element[1] & 0x7f);
  }

  private static int contentLength(byte[] element) {
    int first = element[1] & 0xff;
    if (first < 0x80) {
      return first;
    }
    int length = 0;
    for (int i = 0; i < (first & 0x7f); i++) {
      length = length << 8 | element[2 + i] & 0xff;
    }
    return length;
  }
}
