package io.palisade.plugin.internal;

import com.google.protobuf.Empty;
import io.grpc.BindableService;
import io.grpc.ForwardingServerCallListener.SimpleForwardingServerCallListener;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Server;
import io.grpc.ServerBuilder;
import io.grpc.ServerCall;
import io.grpc.ServerCallExecutorSupplier;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.ServerServiceDefinition;
import io.grpc.health.v1.HealthCheckResponse.ServingStatus;
import io.grpc.protobuf.ProtoUtils;
import io.grpc.protobuf.services.HealthStatusManager;
import io.grpc.stub.ServerCalls;
import io.palisade.plugin.Config;
import io.palisade.plugin.v1.FilterGrpc;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Executor;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.TimeUnit;

/** Everything that one running instance of a plugin serves, over whatever transport. */
public final class PluginServices implements AutoCloseable {

  /** The name that go-plugin hosts ask the health of. */
  private static final String HEALTH_NAME = "plugin";

  /** A header list and a body fit; what a host sends is bounded by its own configuration. */
  private static final int LARGEST_MESSAGE = 16 << 20;

  /**
   * Batches are taken in by the thread that reads the connection: {@link Batches} hands them to another one by itself,
   * and to wake one only for that would cost as much again. Everything else runs on a thread for calls.
   */
  private static final ServerCallExecutorSupplier ON_THE_CONNECTION =
      new ServerCallExecutorSupplier() {
        @Override
        public <Q, P> Executor getExecutor(ServerCall<Q, P> call, Metadata metadata) {
          return isBatches(call) ? Runnable::run : null;
        }
      };

  private final Definition definition;
  private final ExecutorService threads = Threads.forCalls();
  private final HealthStatusManager health = new HealthStatusManager();
  private final UnaryCalls unaryCalls = new UnaryCalls();
  private final List<BindableService> services = new ArrayList<>();
  private final FilterService filter;
  private final CertificateFeed feed;
  private final CertificatesService certificates;
  private final Runnable reload;
  private final ServerServiceDefinition controller;

  /**
   * Makes the services.
   *
   * @param definition the plugin
   * @param shutdown what a host's order to shut down runs; must return at once
   */
  public PluginServices(Definition definition, Runnable shutdown) {
    this.definition = definition;
    this.controller = controller(shutdown);
    Configuration configuration = new Configuration();
    if (definition.requestFilter() != null) {
      filter = new FilterService(definition, configuration, threads);
      services.add(filter);
    } else {
      filter = null;
    }
    if (definition.certificateLoader() != null) {
      feed = new CertificateFeed(definition.certificateLoader(), definition.refreshInterval());
      certificates = new CertificatesService(feed, configuration);
      services.add(certificates);
      reload = feed::reload;
      definition.reloads().add(reload);
    } else {
      feed = null;
      certificates = null;
      reload = null;
    }
    services.add(new LifecycleService(definition, configuration, this::configured));
    services.add(health.getHealthService());
  }

  private void configured(Config config) {
    if (feed != null) {
      feed.configured(config);
    }
  }

  /**
   * Gives the services to a server.
   *
   * @param builder a server that has its transport and nothing else
   * @return the server, not yet started
   */
  public Server server(ServerBuilder<?> builder) {
    services.forEach(builder::addService);
    builder.addService(controller);
    health.setStatus(HealthStatusManager.SERVICE_NAME_ALL_SERVICES, ServingStatus.SERVING);
    health.setStatus(HEALTH_NAME, ServingStatus.SERVING);
    return builder
        .executor(threads)
        .callExecutor(ON_THE_CONNECTION)
        .intercept(unaryCalls)
        .maxInboundMessageSize(LARGEST_MESSAGE)
        .build();
  }

  /**
   * Stops a server: it takes no further calls, ends streams, lets the calls in flight finish, and closes.
   *
   * @param server a server made by {@link #server}
   * @param grace how long to wait for calls in flight
   * @throws InterruptedException if the thread is interrupted while it waits; the server is closed anyhow
   */
  public void stop(Server server, Duration grace) throws InterruptedException {
    long deadline = System.nanoTime() + grace.toNanos();
    try {
      health.enterTerminalState();
      server.shutdown();
      close();
      // Not Server.awaitTermination alone: hosts keep health streams open for as long as they can.
      unaryCalls.awaitNone(deadline);
    } finally {
      server.shutdownNow();
    }
    server.awaitTermination(Math.max(0, deadline - System.nanoTime()), TimeUnit.NANOSECONDS);
    if (filter != null) {
      filter.abandon();
    }
  }

  /** Ends what runs beside calls. */
  @Override
  public void close() {
    if (filter != null) {
      filter.close();
    }
    if (feed != null) {
      definition.reloads().remove(reload);
      feed.close();
      certificates.close();
    }
  }

  /**
   * go-plugin's way to stop a plugin. Bound by hand, since its generated classes would sit in a Java package "plugin";
   * its empty messages have the wire form of {@link Empty}.
   */
  private static ServerServiceDefinition controller(Runnable shutdown) {
    MethodDescriptor<Empty, Empty> method =
        MethodDescriptor.<Empty, Empty>newBuilder()
            .setType(MethodDescriptor.MethodType.UNARY)
            .setFullMethodName("plugin.GRPCController/Shutdown")
            .setRequestMarshaller(ProtoUtils.marshaller(Empty.getDefaultInstance()))
            .setResponseMarshaller(ProtoUtils.marshaller(Empty.getDefaultInstance()))
            .build();
    return ServerServiceDefinition.builder("plugin.GRPCController")
        .addMethod(
            method,
            ServerCalls.asyncUnaryCall(
                (request, observer) -> {
                  observer.onNext(Empty.getDefaultInstance());
                  observer.onCompleted();
                  shutdown.run();
                }))
        .build();
  }

  private static boolean isBatches(ServerCall<?, ?> call) {
    String batches = FilterGrpc.getCheckBatchesMethod().getFullMethodName();
    return call.getMethodDescriptor().getFullMethodName().equals(batches);
  }

  /** Counts the calls that a graceful stop waits for. */
  private static final class UnaryCalls implements ServerInterceptor {
    private int calls;

    @Override
    public <Q, P> ServerCall.Listener<Q> interceptCall(
        ServerCall<Q, P> call, Metadata headers, ServerCallHandler<Q, P> next) {
      // Streams of calls end by themselves when the last one is answered.
      if (!isBatches(call) && !call.getMethodDescriptor().getType().serverSendsOneMessage()) {
        return next.startCall(call, headers);
      }
      begin();
      return new SimpleForwardingServerCallListener<>(next.startCall(call, headers)) {
        @Override
        public void onComplete() {
          end();
          super.onComplete();
        }

        @Override
        public void onCancel() {
          end();
          super.onCancel();
        }
      };
    }

    private synchronized void begin() {
      calls++;
    }

    private synchronized void end() {
      calls--;
      notifyAll();
    }

    synchronized void awaitNone(long deadline) throws InterruptedException {
      for (long left = deadline - System.nanoTime();
          calls > 0 && left > 0;
          left = deadline - System.nanoTime()) {
        TimeUnit.NANOSECONDS.timedWait(this, left);
      }
    }
  }
}
