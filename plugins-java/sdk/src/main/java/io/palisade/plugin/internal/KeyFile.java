package io.palisade.plugin.internal;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFileAttributes;
import java.nio.file.attribute.PosixFilePermission;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.Objects;

/** The file of a private key, and who else may use it. */
public final class KeyFile {

  private KeyFile() {}

  /**
   * Reads a key, unless it is open to everyone.
   *
   * @param key the file, or a link to it
   * @param allowOpen whether everyone may read it or write to it
   * @return its content
   * @throws IOException if it can't be read, is open to everyone, or was replaced meanwhile
   */
  public static byte[] read(Path key, boolean allowOpen) throws IOException {
    if (allowOpen) {
      return Files.readAllBytes(key);
    }
    // Links are followed once, so that the file that is looked at is the one that is read.
    Path file = key.toRealPath();
    PosixFileAttributes before;
    try {
      before = Files.readAttributes(file, PosixFileAttributes.class);
    } catch (UnsupportedOperationException e) {
      // A file system without permissions.
      return Files.readAllBytes(file);
    }
    if (before.permissions().contains(PosixFilePermission.OTHERS_READ)
        || before.permissions().contains(PosixFilePermission.OTHERS_WRITE)) {
      String mode = PosixFilePermissions.toString(before.permissions());
      throw new IOException(
          "the private key " + key + " is open to everyone on this host (mode " + mode + ")"
              + "; try: chmod o-rwx " + key);
    }
    byte[] pem = Files.readAllBytes(file);
    Object after = Files.readAttributes(file, PosixFileAttributes.class).fileKey();
    if (!Objects.equals(before.fileKey(), after)) {
      throw new IOException(key + " was replaced while it was read");
    }
    return pem;
  }
}
