package io.palisade.plugin.internal;

import io.grpc.Server;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.netty.shaded.io.netty.channel.ChannelOption;
import io.grpc.netty.shaded.io.netty.channel.EventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.IoHandlerFactory;
import io.grpc.netty.shaded.io.netty.channel.MultiThreadIoEventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.ServerChannel;
import io.grpc.netty.shaded.io.netty.channel.epoll.Epoll;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollIoHandler;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollServerDomainSocketChannel;
import io.grpc.netty.shaded.io.netty.channel.nio.NioIoHandler;
import io.grpc.netty.shaded.io.netty.channel.socket.nio.NioServerDomainSocketChannel;
import io.grpc.netty.shaded.io.netty.channel.socket.nio.NioServerSocketChannel;
import io.grpc.netty.shaded.io.netty.channel.unix.DomainSocketAddress;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.channels.SocketChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFileAttributeView;
import java.nio.file.attribute.PosixFilePermissions;
import java.nio.file.attribute.UserPrincipalNotFoundException;
import java.util.Optional;
import java.util.concurrent.ThreadFactory;
import java.util.concurrent.TimeUnit;

/**
 * Where a plugin listens: a unix socket, through netty's native transport or, where that can't be loaded, the JDK's;
 * and a port of the loopback interface on a platform without unix sockets.
 */
final class Listener {

  /** One host with few connections; event loops only move bytes. */
  private static final int EVENT_LOOPS = Math.min(4, Runtime.getRuntime().availableProcessors());

  private final SocketAddress address;
  private final Class<? extends ServerChannel> channel;
  private final EventLoopGroup events;
  private final Optional<Path> path;

  private Listener(
      SocketAddress address,
      Class<? extends ServerChannel> channel,
      IoHandlerFactory io,
      Optional<Path> path) {
    this.address = address;
    this.channel = channel;
    this.events =
        new MultiThreadIoEventLoopGroup(
            EVENT_LOOPS,
            (ThreadFactory) task -> Threads.daemon(task, "palisade-events"),
            io);
    this.path = path;
  }

  /** Chooses where to listen, and makes room there. */
  static Listener on(Path socket) throws IOException {
    if (Epoll.isAvailable()) {
      removeStale(socket);
      return new Listener(
          new DomainSocketAddress(socket.toFile()),
          EpollServerDomainSocketChannel.class,
          EpollIoHandler.newFactory(),
          Optional.of(socket));
    }
    if (hasUnixSockets()) {
      removeStale(socket);
      return new Listener(
          UnixDomainSocketAddress.of(socket),
          NioServerDomainSocketChannel.class,
          NioIoHandler.newFactory(),
          Optional.of(socket));
    }
    return new Listener(
        new InetSocketAddress(InetAddress.getLoopbackAddress(), 0),
        NioServerSocketChannel.class,
        NioIoHandler.newFactory(),
        Optional.empty());
  }

  NettyServerBuilder serverBuilder() {
    NettyServerBuilder builder =
        NettyServerBuilder.forAddress(address)
            .channelType(channel)
            .bossEventLoopGroup(events)
            .workerEventLoopGroup(events);
    if (path.isPresent()) {
      // gRPC asks for it always; a unix socket has none, and netty would warn of every connection.
      builder.withChildOption(ChannelOption.SO_KEEPALIVE, null);
    }
    return builder;
  }

  /** The endpoint as the handshake names it, once the server listens. */
  String endpoint(Server server) {
    return path.map(socket -> "unix|" + socket)
        .orElseGet(
            () ->
                "tcp|"
                    + InetAddress.getLoopbackAddress().getHostAddress()
                    + ":"
                    + server.getPort());
  }

  /** Lets a group, by name or id, connect, once the server listens. */
  void shareWith(String group) throws IOException {
    if (path.isEmpty()) {
      return;
    }
    Path socket = path.get();
    PosixFileAttributeView view =
        Files.getFileAttributeView(socket, PosixFileAttributeView.class);
    try {
      view.setGroup(
          socket.getFileSystem().getUserPrincipalLookupService().lookupPrincipalByGroupName(group));
    } catch (UserPrincipalNotFoundException e) {
      throw new IOException("there is no group " + group + " (PLUGIN_UNIX_SOCKET_GROUP)", e);
    }
    view.setPermissions(PosixFilePermissions.fromString("rw-rw----"));
  }

  /**
   * Ends the threads of the event loops, once the server is closed. They wait in native code, where the JVM's exit
   * would wait 300 ms for them.
   */
  void close() {
    events.shutdownGracefully(0, 1, TimeUnit.SECONDS).awaitUninterruptibly(1, TimeUnit.SECONDS);
  }

  private static boolean hasUnixSockets() {
    try (SocketChannel channel = SocketChannel.open(StandardProtocolFamily.UNIX)) {
      return channel.isOpen();
    } catch (UnsupportedOperationException | IOException e) {
      return false;
    }
  }

  /** A plugin that was killed leaves its socket behind; a live one must keep its own. */
  private static void removeStale(Path socket) throws IOException {
    if (!Files.exists(socket)) {
      return;
    }
    boolean alive;
    try (SocketChannel channel = SocketChannel.open(UnixDomainSocketAddress.of(socket))) {
      alive = channel.isConnected();
    } catch (IOException e) {
      alive = false;
    }
    if (alive) {
      throw new IOException("another process listens on " + socket);
    }
    Files.delete(socket);
  }
}
