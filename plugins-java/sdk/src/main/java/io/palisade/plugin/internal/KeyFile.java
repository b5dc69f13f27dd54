package io.palisade.plugin.internal;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermission;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.logging.Logger;

/** Who else may use the file of a private key. */
public final class KeyFile {

  private static final Logger logger = Logger.getLogger(KeyFile.class.getName());

  /** Once for each file is enough: it is read again and again. */
  private static final Set<Path> told = ConcurrentHashMap.newKeySet();

  private KeyFile() {}

  /**
   * Refuses a key that everyone can write to, and warns of one that everyone can read.
   *
   * @param key the file
   * @throws IOException if everyone can write to it, or it can't be looked at
   */
  public static void check(Path key) throws IOException {
    Set<PosixFilePermission> permissions;
    try {
      permissions = Files.getPosixFilePermissions(key);
    } catch (UnsupportedOperationException e) {
      // A file system without them.
      return;
    }
    if (permissions.contains(PosixFilePermission.OTHERS_WRITE)) {
      throw new IOException(
          "everyone can write to the private key " + key + "; try: chmod o-rwx " + key);
    }
    if (permissions.contains(PosixFilePermission.OTHERS_READ) && told.add(key)) {
      logger.warning(
          () -> "everyone on this host can read the private key " + key + "; try: chmod o-rwx " + key);
    }
  }
}
