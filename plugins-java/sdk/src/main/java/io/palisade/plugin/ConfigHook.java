package io.palisade.plugin;

/** Looks at a new configuration before it is in force. */
@FunctionalInterface
public interface ConfigHook {

  /**
   * Checks a configuration, and prepares what follows from it. Not called by two threads at a time; calls that the
   * proxy makes meanwhile still get the configuration before.
   *
   * @param config the new configuration
   * @throws ConfigException if it is wrong: the proxy shows the operator which value and why, and what was in force
   *     stays
   * @throws Exception if it can't be judged; the stack trace is logged and what was in force stays
   */
  void accept(Config config) throws Exception;
}
