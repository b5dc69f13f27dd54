package io.palisade.plugin.internal;

import com.google.protobuf.ByteString;
import com.google.protobuf.Struct;
import com.google.protobuf.Value;
import io.palisade.plugin.Address;
import io.palisade.plugin.Certificate;
import io.palisade.plugin.Config;
import io.palisade.plugin.ConfigException;
import io.palisade.plugin.Decision;
import io.palisade.plugin.HeaderChange;
import io.palisade.plugin.Headers;
import io.palisade.plugin.Needs;
import io.palisade.plugin.Reply;
import io.palisade.plugin.ResponseDecision;
import io.palisade.plugin.TlsFacts;
import io.palisade.plugin.v1.Allow;
import io.palisade.plugin.v1.CertificateBundle;
import io.palisade.plugin.v1.CheckRequestResponse;
import io.palisade.plugin.v1.CheckResponseResponse;
import io.palisade.plugin.v1.ConfigProblem;
import io.palisade.plugin.v1.FilterNeeds;
import io.palisade.plugin.v1.Header;
import io.palisade.plugin.v1.HeaderMutation;
import io.palisade.plugin.v1.HeaderMutations;
import io.palisade.plugin.v1.RequestPart;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Messages into the SDK's own types, and back. */
final class Wire {

  private static final CheckRequestResponse ALLOWED =
      CheckRequestResponse.newBuilder().setAllow(Allow.getDefaultInstance()).build();

  private Wire() {}

  // From the host.

  static Config config(Struct struct) {
    return Config.of(map(struct));
  }

  private static Map<String, Object> map(Struct struct) {
    Map<String, Object> map = new LinkedHashMap<>();
    struct.getFieldsMap().forEach((key, value) -> map.put(key, value(value)));
    return map;
  }

  private static Object value(Value value) {
    return switch (value.getKindCase()) {
      case STRING_VALUE -> value.getStringValue();
      case NUMBER_VALUE -> value.getNumberValue();
      case BOOL_VALUE -> value.getBoolValue();
      case STRUCT_VALUE -> map(value.getStructValue());
      case LIST_VALUE -> list(value.getListValue().getValuesList());
      case NULL_VALUE, KIND_NOT_SET -> null;
    };
  }

  private static List<Object> list(List<Value> values) {
    List<Object> list = new ArrayList<>(values.size());
    values.forEach(value -> list.add(value(value)));
    return list;
  }

  static Headers headers(List<Header> lines) {
    List<io.palisade.plugin.Header> headers = new ArrayList<>(lines.size());
    for (Header line : lines) {
      headers.add(io.palisade.plugin.Header.of(line.getName(), line.getValue().toByteArray()));
    }
    return Headers.of(headers);
  }

  static Address address(io.palisade.plugin.v1.Address address) {
    return switch (address.getAddressCase()) {
      case SOCKET -> new Address.Ip(address.getSocket().getIp(), address.getSocket().getPort());
      case UNIX_PATH -> new Address.Unix(address.getUnixPath());
      case ADDRESS_NOT_SET -> new Address.Unix("");
    };
  }

  static TlsFacts tls(io.palisade.plugin.v1.TlsFacts facts) {
    return TlsFacts.of(
        facts.getServerName(),
        facts.getAlpn(),
        facts.getVersion(),
        facts.getPeerCertificatesList().stream().map(ByteString::toByteArray).toList());
  }

  // To the host.

  static FilterNeeds needs(Needs needs, boolean responsePhase) {
    FilterNeeds.Builder wire =
        FilterNeeds.newBuilder()
            .setMaxBodyBytes(needs.maxBodyBytes())
            .setResponsePhase(responsePhase)
            .setBatches(true);
    needs.parts().forEach(part -> wire.addRequestParts(part(part)));
    return wire.build();
  }

  private static RequestPart part(Needs.Part part) {
    return switch (part) {
      case HEADERS -> RequestPart.REQUEST_PART_HEADERS;
      case ADDRESSES -> RequestPart.REQUEST_PART_ADDRESSES;
      case TLS -> RequestPart.REQUEST_PART_TLS;
      case PEER_CERTIFICATE -> RequestPart.REQUEST_PART_PEER_CERTIFICATE;
      case ROUTE -> RequestPart.REQUEST_PART_ROUTE;
      case BODY -> RequestPart.REQUEST_PART_BODY;
    };
  }

  static ConfigProblem problem(ConfigException.Problem problem) {
    return ConfigProblem.newBuilder().setPath(problem.path()).setMessage(problem.message()).build();
  }

  static CheckRequestResponse decision(Decision decision) {
    // The most frequent one by far.
    if (decision.equals(Decision.allow())) {
      return ALLOWED;
    }
    CheckRequestResponse.Builder wire = CheckRequestResponse.newBuilder();
    if (decision instanceof Decision.Allow allow) {
      wire.setAllow(
          Allow.newBuilder()
              .addAllRequestHeaders(changes(allow.requestChanges()))
              .addAllResponseHeaders(changes(allow.responseChanges())));
    } else if (decision instanceof Reply reply) {
      wire.setDeny(reply(reply));
    }
    return wire.build();
  }

  static CheckResponseResponse decision(ResponseDecision decision) {
    CheckResponseResponse.Builder wire = CheckResponseResponse.newBuilder();
    if (decision instanceof ResponseDecision.Pass pass) {
      wire.setPass(HeaderMutations.newBuilder().addAllHeaders(changes(pass.changes())));
    } else if (decision instanceof Reply reply) {
      wire.setReplace(reply(reply));
    }
    return wire.build();
  }

  private static io.palisade.plugin.v1.Reply reply(Reply reply) {
    io.palisade.plugin.v1.Reply.Builder wire =
        io.palisade.plugin.v1.Reply.newBuilder()
            .setStatus(reply.status())
            .setBody(ByteString.copyFrom(reply.body()));
    reply.headers().forEach(header -> wire.addHeaders(header(header)));
    return wire.build();
  }

  private static List<HeaderMutation> changes(List<HeaderChange> changes) {
    return changes.stream().map(Wire::change).toList();
  }

  private static HeaderMutation change(HeaderChange change) {
    HeaderMutation.Builder wire = HeaderMutation.newBuilder();
    if (change instanceof HeaderChange.Set set) {
      wire.setSet(header(set.header()));
    } else if (change instanceof HeaderChange.Add add) {
      wire.setAppend(header(add.header()));
    } else if (change instanceof HeaderChange.Remove remove) {
      wire.setRemove(remove.name());
    }
    return wire.build();
  }

  private static Header header(io.palisade.plugin.Header header) {
    return Header.newBuilder()
        .setName(header.name())
        .setValue(ByteString.copyFrom(header.bytes()))
        .build();
  }

  static CertificateBundle bundle(Certificate certificate) {
    return CertificateBundle.newBuilder()
        .setName(certificate.name())
        .addAllServerNames(certificate.serverNames())
        .setCertificateChainPem(ByteString.copyFrom(certificate.chainPem()))
        .setPrivateKeyPem(ByteString.copyFrom(certificate.keyPem()))
        .build();
  }
}
