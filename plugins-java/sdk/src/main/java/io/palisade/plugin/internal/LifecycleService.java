package io.palisade.plugin.internal;

import io.grpc.stub.StreamObserver;
import io.palisade.plugin.Config;
import io.palisade.plugin.ConfigException;
import io.palisade.plugin.v1.ConfigureRequest;
import io.palisade.plugin.v1.ConfigureResponse;
import io.palisade.plugin.v1.Contract;
import io.palisade.plugin.v1.DescribeRequest;
import io.palisade.plugin.v1.DescribeResponse;
import io.palisade.plugin.v1.LifecycleGrpc;
import java.util.function.Consumer;
import java.util.logging.Level;
import java.util.logging.Logger;

/** Tells the host what the plugin is, and takes its configuration. */
final class LifecycleService extends LifecycleGrpc.LifecycleImplBase {

  private static final Logger logger = Logger.getLogger(LifecycleService.class.getName());

  private final Definition definition;
  private final Configuration configuration;
  private final Consumer<Config> configured;

  LifecycleService(Definition definition, Configuration configuration, Consumer<Config> configured) {
    this.definition = definition;
    this.configuration = configuration;
    this.configured = configured;
  }

  @Override
  public void describe(DescribeRequest request, StreamObserver<DescribeResponse> observer) {
    DescribeResponse.Builder description =
        DescribeResponse.newBuilder()
            .setName(definition.name())
            .setVersion(definition.version())
            .setMaxConcurrentCalls(definition.maxConcurrentCalls());
    if (definition.requestFilter() != null) {
      description
          .addContracts(Contract.CONTRACT_FILTER)
          .setFilter(Wire.needs(definition.needs(), definition.responseFilter() != null));
    }
    if (definition.certificateLoader() != null) {
      description.addContracts(Contract.CONTRACT_CERTIFICATES);
    }
    observer.onNext(description.build());
    observer.onCompleted();
  }

  @Override
  public void configure(ConfigureRequest request, StreamObserver<ConfigureResponse> observer) {
    ConfigureResponse.Builder response = ConfigureResponse.newBuilder();
    try {
      accept(request);
      response.setHash(request.getHash());
    } catch (ConfigException e) {
      for (ConfigException.Problem problem : e.problems()) {
        response.addProblems(Wire.problem(problem));
      }
    } catch (Throwable e) {
      Handlers.log(logger, Level.SEVERE, "the configuration could not be judged", e);
      observer.onError(Handlers.failure("the configuration could not be judged", e));
      return;
    }
    observer.onNext(response.build());
    observer.onCompleted();
  }

  private synchronized void accept(ConfigureRequest request) throws Exception {
    Config config = Wire.config(request.getConfig());
    definition.configHook().accept(config);
    configuration.set(config, request.getHash());
    configured.accept(config);
  }
}
