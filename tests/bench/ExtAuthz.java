import com.google.protobuf.CodedInputStream;
import com.google.protobuf.CodedOutputStream;
import com.google.protobuf.WireFormat;
import io.grpc.MethodDescriptor;
import io.grpc.Server;
import io.grpc.ServerServiceDefinition;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.netty.shaded.io.netty.channel.MultiThreadIoEventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollIoHandler;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollServerDomainSocketChannel;
import io.grpc.netty.shaded.io.netty.channel.unix.DomainSocketAddress;
import io.grpc.netty.shaded.io.netty.channel.ChannelOption;
import io.grpc.stub.ServerCalls;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;

/**
 * Envoy's ext_authz as grpc-java serves it: lets a request with {@code user: admin} pass, answers 403 to others. It
 * reads no more of the message than it needs, so that it is no slower than one with generated classes.
 */
final class ExtAuthz {

  private static final byte[] ALLOWED = bytes(out -> {
    out.writeByteArray(1, new byte[0]);
    out.writeByteArray(3, new byte[0]);
  });
  private static final byte[] DENIED = bytes(out -> {
    out.writeByteArray(1, bytes(status -> status.writeInt32(1, 7)));
    out.writeByteArray(2, bytes(denied -> {
      denied.writeByteArray(1, bytes(status -> status.writeInt32(1, 403)));
      denied.writeString(3, "forbidden\n");
    }));
  });

  private interface Write {
    void to(CodedOutputStream out) throws IOException;
  }

  private static byte[] bytes(Write write) {
    try {
      ByteArrayOutputStream bytes = new ByteArrayOutputStream();
      CodedOutputStream out = CodedOutputStream.newInstance(bytes);
      write.to(out);
      out.flush();
      return bytes.toByteArray();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** Whether a CheckRequest (or a message in it, by its depth) has the header. */
  private static boolean admits(CodedInputStream in, int... path) throws IOException {
    for (int tag = in.readTag(); tag != 0; tag = in.readTag()) {
      int field = WireFormat.getTagFieldNumber(tag);
      if (path.length > 0 && field == path[0]) {
        int limit = in.pushLimit(in.readRawVarint32());
        int[] rest = java.util.Arrays.copyOfRange(path, 1, path.length);
        if (rest.length == 0 ? isAdmin(in) : admits(in, rest)) {
          return true;
        }
        in.popLimit(limit);
      } else {
        in.skipField(tag);
      }
    }
    return false;
  }

  private static boolean isAdmin(CodedInputStream in) throws IOException {
    String name = "";
    String value = "";
    for (int tag = in.readTag(); tag != 0; tag = in.readTag()) {
      switch (WireFormat.getTagFieldNumber(tag)) {
        case 1 -> name = in.readString();
        case 2 -> value = in.readString();
        default -> in.skipField(tag);
      }
    }
    return name.equals("user") && value.equals("admin");
  }

  private static final class Bytes implements MethodDescriptor.Marshaller<byte[]> {
    @Override
    public InputStream stream(byte[] value) {
      return new ByteArrayInputStream(value);
    }

    @Override
    public byte[] parse(InputStream stream) {
      try {
        return stream.readAllBytes();
      } catch (IOException e) {
        throw new UncheckedIOException(e);
      }
    }
  }

  public static void main(String[] args) throws Exception {
    MethodDescriptor<byte[], byte[]> check =
        MethodDescriptor.<byte[], byte[]>newBuilder()
            .setType(MethodDescriptor.MethodType.UNARY)
            .setFullMethodName("envoy.service.auth.v3.Authorization/Check")
            .setRequestMarshaller(new Bytes())
            .setResponseMarshaller(new Bytes())
            .build();
    ServerServiceDefinition service =
        ServerServiceDefinition.builder("envoy.service.auth.v3.Authorization")
            .addMethod(
                check,
                ServerCalls.asyncUnaryCall(
                    (request, observer) -> {
                      try {
                        CodedInputStream in = CodedInputStream.newInstance(request);
                        observer.onNext(admits(in, 1, 4, 2, 3) ? ALLOWED : DENIED);
                        observer.onCompleted();
                      } catch (IOException e) {
                        observer.onError(e);
                      }
                    }))
            .build();
    MultiThreadIoEventLoopGroup events = new MultiThreadIoEventLoopGroup(1, EpollIoHandler.newFactory());
    Server server =
        NettyServerBuilder.forAddress(new DomainSocketAddress(new File(args[0])))
            .channelType(EpollServerDomainSocketChannel.class)
            .bossEventLoopGroup(events)
            .workerEventLoopGroup(events)
            .withChildOption(ChannelOption.SO_KEEPALIVE, null)
            .addService(service)
            .build()
            .start();
    server.awaitTermination();
  }
}
