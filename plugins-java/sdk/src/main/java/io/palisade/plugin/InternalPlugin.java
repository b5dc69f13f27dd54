package io.palisade.plugin;

import io.palisade.plugin.internal.Definition;

/** Access for the SDK's other packages. Not part of the API. */
public final class InternalPlugin {

  private InternalPlugin() {}

  /**
   * What a plugin consists of.
   *
   * @param plugin a plugin
   * @return its parts as they are now
   */
  public static Definition definition(Plugin plugin) {
    return plugin.definition();
  }
}
