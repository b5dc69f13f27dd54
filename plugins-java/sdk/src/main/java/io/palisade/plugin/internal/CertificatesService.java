package io.palisade.plugin.internal;

import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import io.palisade.plugin.Certificate;
import io.palisade.plugin.v1.CertificatesGrpc;
import io.palisade.plugin.v1.WatchCertificatesRequest;
import io.palisade.plugin.v1.WatchCertificatesResponse;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CopyOnWriteArrayList;

/** Sends certificates to those who watch, each as soon as it can take them. */
final class CertificatesService extends CertificatesGrpc.CertificatesImplBase
    implements AutoCloseable {

  private final CertificateFeed feed;
  private final Configuration configuration;
  private final List<Stream> streams = new CopyOnWriteArrayList<>();

  CertificatesService(CertificateFeed feed, Configuration configuration) {
    this.feed = feed;
    this.configuration = configuration;
  }

  @Override
  public void watch(
      WatchCertificatesRequest request, StreamObserver<WatchCertificatesResponse> observer) {
    try {
      configuration.forCall(request.getContext().getConfigHash());
    } catch (StatusRuntimeException e) {
      observer.onError(e);
      return;
    }
    new Stream(
            Set.copyOf(request.getNamesList()),
            (ServerCallStreamObserver<WatchCertificatesResponse>) observer)
        .open();
  }

  /** Ends every stream, so that hosts open them again elsewhere. */
  @Override
  public void close() {
    streams.forEach(Stream::end);
  }

  /**
   * One host that watches. It is told the difference between what it has and what there is, whenever it can take a
   * message: one that is slow skips states, and nothing queues up.
   */
  private final class Stream {
    private final Set<String> names;
    private final ServerCallStreamObserver<WatchCertificatesResponse> observer;
    private final Runnable watcher = this::update;
    private Map<String, Certificate> sent;
    private boolean ended;

    Stream(Set<String> names, ServerCallStreamObserver<WatchCertificatesResponse> observer) {
      this.names = names;
      this.observer = observer;
    }

    void open() {
      observer.setOnReadyHandler(this::update);
      observer.setOnCancelHandler(this::forget);
      streams.add(this);
      feed.watch(watcher);
      update();
    }

    private synchronized void update() {
      Map<String, Certificate> current = feed.lastGood();
      if (ended || current == null || !observer.isReady()) {
        return;
      }
      Map<String, Certificate> wanted = new LinkedHashMap<>(current);
      if (!names.isEmpty()) {
        wanted.keySet().retainAll(names);
      }
      WatchCertificatesResponse.Builder message = WatchCertificatesResponse.newBuilder();
      if (sent == null) {
        message.setComplete(true);
        wanted.values().forEach(certificate -> message.addBundles(Wire.bundle(certificate)));
      } else if (sent.equals(wanted)) {
        return;
      } else {
        wanted.forEach(
            (name, certificate) -> {
              if (!certificate.equals(sent.get(name))) {
                message.addBundles(Wire.bundle(certificate));
              }
            });
        sent.keySet().stream().filter(name -> !wanted.containsKey(name)).forEach(message::addRemoved);
      }
      sent = wanted;
      observer.onNext(message.build());
    }

    private synchronized void end() {
      if (!ended) {
        forget();
        observer.onError(
            Status.UNAVAILABLE.withDescription("the plugin stops").asRuntimeException());
      }
    }

    private synchronized void forget() {
      ended = true;
      streams.remove(this);
      feed.unwatch(watcher);
    }
  }
}
