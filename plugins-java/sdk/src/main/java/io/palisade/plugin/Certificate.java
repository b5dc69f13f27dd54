package io.palisade.plugin;

import io.palisade.plugin.internal.KeyFile;
import io.palisade.plugin.internal.KeyMatch;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.Optional;

/** A TLS certificate chain with its private key. Immutable. */
public final class Certificate {

  /** The name of a certificate that was not {@linkplain #named given one}. */
  public static final String DEFAULT_NAME = "default";

  private static final int LONGEST_NAME = 255;

  private final String name;
  private final List<String> serverNames;
  private final byte[] chainPem;
  private final byte[] keyPem;

  private Certificate(String name, List<String> serverNames, byte[] chainPem, byte[] keyPem) {
    this.name = name;
    this.serverNames = serverNames;
    this.chainPem = chainPem;
    this.keyPem = keyPem;
  }

  /**
   * Reads a certificate from two PEM files. Files can be replaced at any time, each by renaming a complete one over it:
   * while they don't belong together, reading them fails, and the proxy keeps what it has.
   *
   * @param chain file with the chain, leaf first, then intermediates
   * @param key file with the key: PKCS#8, PKCS#1 or SEC1, not encrypted
   * @return the certificate, with the name {@link #DEFAULT_NAME}, for the DNS names in its leaf
   * @throws IOException if a file can't be read or is not what it should be, the key does not belong to the leaf, or
   *     everyone can read or write to it
   */
  public static Certificate read(Path chain, Path key) throws IOException {
    return read(chain, key, false);
  }

  /**
   * As {@link #read(Path, Path)}, also of a key that everyone can read or write to.
   *
   * @param chain file with the chain
   * @param key file with the key
   * @param allowOpenKeys whether such a key is taken
   * @return the certificate
   * @throws IOException as there
   */
  public static Certificate read(Path chain, Path key, boolean allowOpenKeys) throws IOException {
    byte[] keyPem = KeyFile.read(key, allowOpenKeys);
    byte[] chainPem = Files.readAllBytes(chain);
    if (!isChain(chainPem)) {
      throw new IOException(chain + " holds no PEM certificate");
    }
    if (!isKey(keyPem)) {
      throw new IOException(key + " holds no PEM private key that is not encrypted");
    }
    Optional<String> problem = KeyMatch.problem(chainPem, keyPem);
    if (problem.isPresent()) {
      throw new IOException(chain + " and " + key + ": " + problem.get());
    }
    return new Certificate(DEFAULT_NAME, List.of(), chainPem, keyPem);
  }

  /**
   * Makes a certificate from PEM in memory. Whether the two belong together is left to the caller.
   *
   * @param chainPem the chain, leaf first, then intermediates; copied
   * @param keyPem the key: PKCS#8, PKCS#1 or SEC1, not encrypted; copied
   * @return the certificate, with the name {@link #DEFAULT_NAME}, for the DNS names in its leaf
   * @throws IllegalArgumentException if one is not what it should be
   */
  public static Certificate of(byte[] chainPem, byte[] keyPem) {
    if (!isChain(chainPem)) {
      throw new IllegalArgumentException("chainPem holds no PEM certificate");
    }
    if (!isKey(keyPem)) {
      throw new IllegalArgumentException("keyPem holds no PEM private key that is not encrypted");
    }
    return new Certificate(DEFAULT_NAME, List.of(), chainPem.clone(), keyPem.clone());
  }

  /**
   * The same certificate by another name. The proxy's configuration may ask for certificates by name, and a later one
   * of the same name replaces an earlier one.
   *
   * @param newName 1 to 255 bytes of UTF-8
   * @return the certificate
   * @throws IllegalArgumentException if the name is empty or too long
   */
  public Certificate named(String newName) {
    if (newName.isEmpty() || newName.getBytes(StandardCharsets.UTF_8).length > LONGEST_NAME) {
      throw new IllegalArgumentException(
          "the name of a certificate has 1 to " + LONGEST_NAME + " bytes");
    }
    return new Certificate(newName, serverNames, chainPem, keyPem);
  }

  /**
   * The same certificate for other server names.
   *
   * @param names server names (SNI): exact, {@code "a.example"}, or with one leading wildcard label,
   *     {@code "*.example"}; none for the DNS names in the leaf
   * @return the certificate
   */
  public Certificate serverNames(String... names) {
    return new Certificate(name, List.of(names), chainPem, keyPem);
  }

  /**
   * The name.
   *
   * @return at most 255 bytes of UTF-8
   */
  public String name() {
    return name;
  }

  /**
   * The server names (SNI) that it is for.
   *
   * @return empty for the DNS names in the leaf
   */
  public List<String> serverNames() {
    return serverNames;
  }

  /**
   * The chain.
   *
   * @return a copy of the PEM, leaf first
   */
  public byte[] chainPem() {
    return chainPem.clone();
  }

  /**
   * The private key.
   *
   * @return a copy of the PEM
   */
  public byte[] keyPem() {
    return keyPem.clone();
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof Certificate that
        && name.equals(that.name)
        && serverNames.equals(that.serverNames)
        && Arrays.equals(chainPem, that.chainPem)
        && Arrays.equals(keyPem, that.keyPem);
  }

  @Override
  public int hashCode() {
    return Objects.hash(name, serverNames, Arrays.hashCode(chainPem));
  }

  /** Shows names only. */
  @Override
  public String toString() {
    return "Certificate[" + name + ", " + serverNames + "]";
  }

  private static boolean isChain(byte[] pem) {
    return new String(pem, StandardCharsets.ISO_8859_1).contains("-----BEGIN CERTIFICATE-----");
  }

  private static boolean isKey(byte[] pem) {
    String text = new String(pem, StandardCharsets.ISO_8859_1);
    return text.contains("PRIVATE KEY-----")
        && !text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----")
        && !text.contains("Proc-Type: 4,ENCRYPTED");
  }
}
