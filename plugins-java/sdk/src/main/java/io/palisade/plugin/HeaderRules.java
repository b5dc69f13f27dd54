package io.palisade.plugin;

import java.util.Set;

/** What the proxy takes for a header from a plugin; told here, where the stack trace shows who gave it. */
final class HeaderRules {

  /** The proxy frames messages itself, so these are not a plugin's to change. */
  private static final Set<String> FRAMING =
      Set.of(
          "connection",
          "content-length",
          "keep-alive",
          "proxy-connection",
          "te",
          "trailer",
          "transfer-encoding",
          "upgrade");

  private static final String TOKEN_SYMBOLS = "!#$%&'*+-.^_`|~";

  private HeaderRules() {}

  /** Throws IllegalArgumentException unless HTTP has such a header and a plugin may change it. */
  static void check(Header header) {
    String name = header.name();
    if (name.isEmpty() || !name.chars().allMatch(HeaderRules::isTokenCharacter)) {
      throw new IllegalArgumentException("\"" + printable(name) + "\" is not the name of a header");
    }
    if (FRAMING.contains(name)) {
      throw new IllegalArgumentException(
          "the header " + name + " belongs to the connection; the proxy sets it itself");
    }
    for (byte octet : header.bytes()) {
      if (octet >= 0 && octet < ' ' && octet != '\t' || octet == 0x7f) {
        throw new IllegalArgumentException(
            "the value of the header " + name + " contains a control character");
      }
    }
  }

  /** Throws IllegalArgumentException for a change of the host: the request was judged and routed by it. */
  static void checkForRequest(HeaderChange change) {
    String name;
    if (change instanceof HeaderChange.Set set) {
      name = set.header().name();
    } else if (change instanceof HeaderChange.Add add) {
      name = add.header().name();
    } else {
      name = ((HeaderChange.Remove) change).name();
    }
    if (name.equals("host")) {
      throw new IllegalArgumentException("the host of a request can't be changed");
    }
  }

  private static boolean isTokenCharacter(int c) {
    return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || TOKEN_SYMBOLS.indexOf(c) >= 0;
  }

  private static String printable(String text) {
    return text.replaceAll("\\p{Cntrl}", "?");
  }
}
