/**
 * Write plugins for the Palisade HTTP proxy.
 *
 * <p>Start with {@link io.palisade.plugin.Plugin}: name the plugin, give it a filter, a certificate loader or both, and
 * call {@link io.palisade.plugin.Plugin#serve() serve()} from {@code main}. A filter gets a
 * {@link io.palisade.plugin.Request} and the plugin's {@link io.palisade.plugin.Config}, and answers with a
 * {@link io.palisade.plugin.Decision}. A certificate loader answers with a {@link io.palisade.plugin.Certificate}.
 *
 * <p>Whatever goes wrong in a plugin's code fails the call, and the proxy then does what the plugin's
 * {@code on_failure} says, which is to deny unless configured otherwise. Nothing that fails is ever an "allow".
 *
 * <p>Parameters and results are never {@code null} unless their documentation says so.
 *
 * <p>Plugins are tested without the proxy through {@link io.palisade.plugin.testing.PluginTester}.
 */
package io.palisade.plugin;
