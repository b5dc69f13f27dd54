/**
 * Tests of plugins without the proxy. Start with {@link io.palisade.plugin.testing.PluginTester}: it runs a plugin in
 * the test's own process and asks it what the proxy would ask, through the same services.
 */
package io.palisade.plugin.testing;
