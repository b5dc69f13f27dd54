package io.palisade.plugin.testing;

import io.grpc.ManagedChannel;
import io.grpc.Server;
import io.grpc.StatusRuntimeException;
import io.grpc.inprocess.InProcessChannelBuilder;
import io.grpc.inprocess.InProcessServerBuilder;
import io.palisade.plugin.Certificate;
import io.palisade.plugin.Config;
import io.palisade.plugin.ConfigException;
import io.palisade.plugin.Decision;
import io.palisade.plugin.Header;
import io.palisade.plugin.Headers;
import io.palisade.plugin.InternalPlugin;
import io.palisade.plugin.Plugin;
import io.palisade.plugin.Request;
import io.palisade.plugin.ResponseDecision;
import io.palisade.plugin.internal.HostSide;
import io.palisade.plugin.internal.PluginServices;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.function.Predicate;
import java.util.function.Supplier;

/**
 * Runs a plugin without the proxy, in the test's own process, through the services that the proxy calls.
 *
 * <pre>{@code
 * try (var tester = PluginTester.of(plugin, Map.of("allow", List.of("admin")))) {
 *   assertEquals(
 *       allow().setHeader("x-auth", "ok"),
 *       tester.check(RequestBuilder.get("/").header("x-user", "admin")));
 * }
 * }</pre>
 *
 * <p>What the plugin does not {@linkplain Plugin#needs need} it is not sent, as by the proxy. Each call may take 10
 * seconds.
 */
public final class PluginTester implements AutoCloseable {

  private static final Duration TIMEOUT = Duration.ofSeconds(10);

  private final PluginServices services;
  private final Server server;
  private final ManagedChannel channel;
  private final HostSide host;
  private final Object certificateMonitor = new Object();
  private boolean watching;
  private List<Certificate> certificates;

  private PluginTester(Plugin plugin) {
    services = new PluginServices(InternalPlugin.definition(plugin), () -> {});
    String name = InProcessServerBuilder.generateName();
    try {
      server = services.server(InProcessServerBuilder.forName(name)).start();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    channel = InProcessChannelBuilder.forName(name).build();
    host = new HostSide(channel, TIMEOUT);
  }

  /**
   * Starts a plugin and configures it.
   *
   * @param plugin the plugin
   * @param config its {@code config:} value: strings, numbers, booleans, lists and maps
   * @return the tester; to be closed
   * @throws ConfigException if the plugin refuses the configuration
   * @throws CallFailedException if the plugin can't judge the configuration
   */
  public static PluginTester of(Plugin plugin, Map<String, ?> config) {
    PluginTester tester = new PluginTester(plugin);
    try {
      tester.configure(config);
      return tester;
    } catch (RuntimeException | Error e) {
      tester.close();
      throw e;
    }
  }

  /**
   * Starts a plugin and gives it an empty configuration.
   *
   * @param plugin the plugin
   * @return the tester; to be closed
   * @throws ConfigException if the plugin refuses the configuration
   */
  public static PluginTester of(Plugin plugin) {
    return of(plugin, Map.of());
  }

  /**
   * Gives the plugin another configuration, as a reload of the proxy does.
   *
   * @param config its {@code config:} value
   * @throws ConfigException if the plugin refuses it; what was in force stays
   * @throws CallFailedException if the plugin can't judge it; what was in force stays
   */
  public void configure(Map<String, ?> config) {
    List<ConfigException.Problem> problems = call(() -> host.configure(Config.of(config)));
    if (!problems.isEmpty()) {
      throw new ConfigException(problems);
    }
  }

  /**
   * Has a request judged.
   *
   * @param request the request
   * @return the plugin's decision
   * @throws CallFailedException if the plugin fails
   * @throws IllegalStateException if the plugin has no filter
   * @throws IllegalArgumentException if the body is larger than the plugin {@linkplain io.palisade.plugin.Needs#body
   *     judges}, where the proxy would answer 413
   */
  public Decision check(Request request) {
    return call(() -> host.check(request));
  }

  /**
   * As {@link #check(Request)}.
   *
   * @param request builds the request
   * @return the plugin's decision
   */
  public Decision check(RequestBuilder request) {
    return check(request.build());
  }

  /**
   * Has the head of a response judged.
   *
   * @param request the request that it answers
   * @param status its status
   * @param headers its headers
   * @return the plugin's decision
   * @throws CallFailedException if the plugin fails
   * @throws IllegalStateException if the plugin has no response filter
   */
  public ResponseDecision checkResponse(RequestBuilder request, int status, Header... headers) {
    return call(() -> host.checkResponse(request.build(), status, Headers.of(List.of(headers))));
  }

  /**
   * The plugin's certificates as a proxy that watches them has them now. Waits up to 10 seconds for the first.
   *
   * @return the certificates
   * @throws IllegalStateException if the plugin has no certificate loader, or has given none in time
   */
  public List<Certificate> certificates() {
    return awaitCertificates(any -> true);
  }

  /**
   * Waits up to 10 seconds until the certificates that a proxy has are as a test wants them.
   * {@link Plugin#reloadCertificates()} makes changes come at once.
   *
   * @param condition tells whether they are
   * @return the certificates
   * @throws IllegalStateException if the plugin has no certificate loader, or they were not so in time
   */
  public List<Certificate> awaitCertificates(Predicate<List<Certificate>> condition) {
    watchOnce();
    long deadline = System.nanoTime() + TIMEOUT.toNanos();
    synchronized (certificateMonitor) {
      while (certificates == null || !condition.test(certificates)) {
        long millis = (deadline - System.nanoTime()) / 1_000_000;
        if (millis <= 0) {
          throw new IllegalStateException(
              certificates == null
                  ? "the plugin has given no certificates"
                  : "the certificates are still " + certificates);
        }
        try {
          certificateMonitor.wait(millis);
        } catch (InterruptedException e) {
          Thread.currentThread().interrupt();
          throw new IllegalStateException("interrupted while waiting for certificates", e);
        }
      }
      return certificates;
    }
  }

  /** Stops the plugin. */
  @Override
  public void close() {
    channel.shutdownNow();
    try {
      services.stop(server, TIMEOUT);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  private synchronized void watchOnce() {
    if (watching) {
      return;
    }
    host.watchCertificates(
        held -> {
          synchronized (certificateMonitor) {
            certificates = List.copyOf(held.values());
            certificateMonitor.notifyAll();
          }
        });
    watching = true;
  }

  private static <T> T call(Supplier<T> call) {
    try {
      return call.get();
    } catch (StatusRuntimeException e) {
      throw new CallFailedException(
          e.getStatus().getCode().name(), String.valueOf(e.getStatus().getDescription()), e);
    }
  }
}
