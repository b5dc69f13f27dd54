package io.palisade.plugin.internal;

import io.palisade.plugin.AsyncRequestFilter;
import io.palisade.plugin.CertificateSetLoader;
import io.palisade.plugin.ConfigHook;
import io.palisade.plugin.Needs;
import io.palisade.plugin.ResponseFilter;
import java.time.Duration;
import java.util.List;

/**
 * What a plugin consists of.
 *
 * @param name the plugin's own name
 * @param version the plugin's own version, perhaps empty
 * @param requestFilter judges requests; {@code null} if the plugin has no filters
 * @param responseFilter judges responses; {@code null} if the plugin has none
 * @param needs the parts of a request that the filters want
 * @param maxConcurrentCalls calls of the filters at a time; 0 without a bound
 * @param certificateLoader loads certificates; {@code null} if the plugin has none
 * @param refreshInterval the time from one load to the next
 * @param configHook looks at each configuration first
 * @param reloads what {@code Plugin.reloadCertificates} runs; a running instance adds itself
 */
public record Definition(
    String name,
    String version,
    AsyncRequestFilter requestFilter,
    ResponseFilter responseFilter,
    Needs needs,
    int maxConcurrentCalls,
    CertificateSetLoader certificateLoader,
    Duration refreshInterval,
    ConfigHook configHook,
    List<Runnable> reloads) {}
