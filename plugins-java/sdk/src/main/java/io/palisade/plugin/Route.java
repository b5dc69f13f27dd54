package io.palisade.plugin;

import java.util.Map;

/**
 * The route that the proxy has chosen for a request.
 *
 * @param name the route's name
 * @param metadata the route's {@code metadata:}, unmodifiable
 */
public record Route(String name, Map<String, String> metadata) {
  /**
   * Makes a route.
   *
   * @param name the route's name
   * @param metadata the route's {@code metadata:}, copied
   */
  public Route {
    metadata = Map.copyOf(metadata);
  }
}
