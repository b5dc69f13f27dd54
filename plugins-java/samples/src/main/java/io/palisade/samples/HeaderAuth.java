package io.palisade.samples;

import static io.palisade.plugin.Decision.allow;
import static io.palisade.plugin.Decision.deny;

import io.palisade.plugin.Config;
import io.palisade.plugin.Decision;
import io.palisade.plugin.Plugin;
import io.palisade.plugin.Request;

/**
 * Lets a request pass that has a header with the right value, and answers 403 to any other.
 *
 * <pre>
 * config: { header: User, value: admin }   # the defaults
 * </pre>
 */
public final class HeaderAuth {

  private HeaderAuth() {}

  static Plugin plugin() {
    return Plugin.named("header-auth")
        .version("0.1.0")
        .configure(HeaderAuth::verify)
        .filter(HeaderAuth::check);
  }

  /** Reads what {@link #check} will read, so that a wrong type shows when the proxy starts. */
  private static void verify(Config config) {
    header(config);
    value(config);
  }

  private static Decision check(Request request, Config config) {
    return value(config).equals(request.header(header(config))) ? allow() : deny(403, "forbidden");
  }

  private static String header(Config config) {
    return config.string("header", "User");
  }

  private static String value(Config config) {
    return config.string("value", "admin");
  }

  /**
   * Runs the plugin; palisade starts it.
   *
   * @param args none
   */
  public static void main(String[] args) {
    plugin().serve();
  }
}
