package io.palisade.plugin;

import io.palisade.plugin.internal.Definition;
import io.palisade.plugin.internal.PluginProcess;
import java.time.Duration;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CopyOnWriteArrayList;

/**
 * A plugin of the Palisade HTTP proxy.
 *
 * <pre>{@code
 * public static void main(String[] args) {
 *   Plugin.named("java-demo").version("1.0").filter(Demo::check).certificates(Demo::load).serve();
 * }
 * }</pre>
 *
 * <p>The methods that describe the plugin change it and return it, and are to be called by one thread before
 * {@link #serve()}. Of filters and certificate loaders a plugin has at most one each; the last one given counts.
 */
public final class Plugin {

  /** Threads are what a filter that blocks uses up, so their number is bounded. */
  private static final int DEFAULT_BLOCKING_CALLS = 256;

  private static final Duration DEFAULT_REFRESH = Duration.ofSeconds(1);

  private final String name;
  private final List<Runnable> reloads = new CopyOnWriteArrayList<>();
  private String version = "";
  private AsyncRequestFilter requestFilter;
  private boolean requestFilterBlocks;
  private ResponseFilter responseFilter;
  private Needs needs = Needs.standard();
  private Integer maxConcurrentCalls;
  private CertificateSetLoader certificateLoader;
  private Duration refreshInterval = DEFAULT_REFRESH;
  private ConfigHook configHook = config -> {};

  private Plugin(String name) {
    this.name = name;
  }

  /**
   * Begins a plugin. In a process that the proxy started, {@link System#out} leads to standard error from here on:
   * standard output belongs to the handshake.
   *
   * @param name the plugin's own name; the proxy's configuration may call it otherwise
   * @return a plugin that does nothing yet
   * @throws IllegalArgumentException if the name is empty
   */
  public static Plugin named(String name) {
    if (name.isEmpty()) {
      throw new IllegalArgumentException("the name of a plugin is not empty");
    }
    PluginProcess.keepStandardOutputClean();
    return new Plugin(name);
  }

  /**
   * Says which version of the plugin this is.
   *
   * @param version free text, shown to operators; empty by default
   * @return this plugin
   */
  public Plugin version(String version) {
    this.version = Objects.requireNonNull(version, "version");
    return this;
  }

  /**
   * Judges requests.
   *
   * @param filter called on a thread of its own for each request, so that it may block
   * @return this plugin
   */
  public Plugin filter(RequestFilter filter) {
    Objects.requireNonNull(filter, "filter");
    requestFilter = (request, config) -> CompletableFuture.completedFuture(filter.check(request, config));
    requestFilterBlocks = true;
    return this;
  }

  /**
   * Judges requests without holding a thread while it waits.
   *
   * @param filter begins to judge and returns at once
   * @return this plugin
   */
  public Plugin filterAsync(AsyncRequestFilter filter) {
    requestFilter = Objects.requireNonNull(filter, "filter");
    requestFilterBlocks = false;
    return this;
  }

  /**
   * Judges responses. A plugin without a {@linkplain #filter filter} allows every request.
   *
   * @param filter called on a thread of its own for the head of each response, so that it may block
   * @return this plugin
   */
  public Plugin response(ResponseFilter filter) {
    responseFilter = Objects.requireNonNull(filter, "filter");
    return this;
  }

  /**
   * Says which parts of a request the filter wants to see.
   *
   * @param needs the parts; {@link Needs#standard()} by default
   * @return this plugin
   */
  public Plugin needs(Needs needs) {
    this.needs = Objects.requireNonNull(needs, "needs");
    return this;
  }

  /**
   * Bounds how many calls of the filters one process works on at a time. The proxy queues the rest within each call's
   * deadline.
   *
   * @param calls the bound; 0 for none, which is the default when all there is is {@link #filterAsync}. The default is
   *     256 otherwise
   * @return this plugin
   * @throws IllegalArgumentException if {@code calls} is negative
   */
  public Plugin maxConcurrentCalls(int calls) {
    if (calls < 0) {
      throw new IllegalArgumentException("the number of calls is negative: " + calls);
    }
    maxConcurrentCalls = calls;
    return this;
  }

  /**
   * Provides one certificate.
   *
   * @param loader called once the plugin is configured, and again after each {@linkplain #refreshEvery interval}; what
   *     it gives is sent to the proxy when it differs from what it gave before
   * @return this plugin
   */
  public Plugin certificates(CertificateLoader loader) {
    Objects.requireNonNull(loader, "loader");
    return certificateSet(
        (request, config) -> {
          Certificate certificate = loader.load(request, config);
          return certificate == null ? null : List.of(certificate);
        });
  }

  /**
   * Provides any number of certificates.
   *
   * @param loader as for {@link #certificates}
   * @return this plugin
   */
  public Plugin certificateSet(CertificateSetLoader loader) {
    certificateLoader = Objects.requireNonNull(loader, "loader");
    return this;
  }

  /**
   * Says how long to wait after one call of the certificate loader before the next.
   *
   * @param interval the time between; 1 second by default
   * @return this plugin
   * @throws IllegalArgumentException if it is not positive
   */
  public Plugin refreshEvery(Duration interval) {
    if (interval.isZero() || interval.isNegative()) {
      throw new IllegalArgumentException("the interval is not positive: " + interval);
    }
    refreshInterval = interval;
    return this;
  }

  /**
   * Looks at each configuration before it is in force.
   *
   * @param hook throws {@link ConfigException} to refuse it
   * @return this plugin
   */
  public Plugin configure(ConfigHook hook) {
    configHook = Objects.requireNonNull(hook, "hook");
    return this;
  }

  /**
   * Calls the certificate loader soon, without waiting for the refresh interval. May be called by any thread, and does
   * nothing before the plugin is configured.
   */
  public void reloadCertificates() {
    reloads.forEach(Runnable::run);
  }

  /**
   * Serves the proxy until it stops the plugin, and ends the process: status 0 if it was stopped, 1 if it could not
   * start. Never returns.
   *
   * <p>Meant to be called from {@code main}, which should not do much else. The process has to be started by the proxy;
   * otherwise it says so on standard error. {@link System#out} leads to standard error, records of
   * {@code java.util.logging} go there as JSON lines that the proxy understands (unless
   * {@code java.util.logging.config.file} or {@code .class} is set), and the system property {@code java.io.tmpdir} is
   * the directory that the proxy named; {@link java.nio.file.Files#createTempFile} keeps to what it was when the JVM
   * began. When the proxy dies, so does the process.
   *
   * @throws IllegalStateException if the plugin has neither a filter nor a certificate loader
   */
  public void serve() {
    PluginProcess.serve(definition());
  }

  Definition definition() {
    if (requestFilter == null && responseFilter == null && certificateLoader == null) {
      throw new IllegalStateException(
          "plugin " + name + " does nothing: give it a filter or a certificate loader");
    }
    boolean filters = requestFilter != null || responseFilter != null;
    boolean blocks = requestFilterBlocks || responseFilter != null;
    int calls = maxConcurrentCalls != null ? maxConcurrentCalls : blocks ? DEFAULT_BLOCKING_CALLS : 0;
    AsyncRequestFilter requests =
        requestFilter == null && filters
            ? (request, config) -> CompletableFuture.completedFuture(Decision.allow())
            : requestFilter;
    return new Definition(
        name,
        version,
        requests,
        responseFilter,
        needs,
        calls,
        certificateLoader,
        refreshInterval,
        configHook,
        reloads);
  }
}
