package io.palisade.plugin;

/** Where one end of a connection is. */
public sealed interface Address {

  /**
   * An IP address and a port.
   *
   * @param ip {@code "127.0.0.1"}, or the short text of an IPv6 address as RFC 5952 has it, {@code "::1"}
   * @param port 0 to 65535
   */
  record Ip(String ip, int port) implements Address {
    @Override
    public String toString() {
      return (ip.indexOf(':') >= 0 ? "[" + ip + "]" : ip) + ":" + port;
    }
  }

  /**
   * A unix socket.
   *
   * @param path its path, empty for one without a name
   */
  record Unix(String path) implements Address {
    @Override
    public String toString() {
      return "unix:" + path;
    }
  }
}
