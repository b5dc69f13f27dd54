"""The host's half of the contract, for `palisade.testing`: the mirror of `palisade._wire`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from google.protobuf import struct_pb2

from ._certificates import Certificate
from ._errors import ConfigError
from ._generated import certificates_pb2, common_pb2, filter_pb2, lifecycle_pb2
from ._headers import RawHeaders
from ._request import Address, Request
from ._verdicts import Allow, Deny, Keep, Mutation, Replace, Reply, ResponseVerdict, Verdict
from ._wire import Config


@dataclass(frozen=True, slots=True)
class Needs:
    """What a host sends to the plugin, as Describe says."""

    body: bool
    max_body: int
    peer_certificates: bool


def decode_describe(data: bytes) -> Needs:
    needs = lifecycle_pb2.DescribeResponse.FromString(data).filter
    return Needs(
        body=lifecycle_pb2.REQUEST_PART_BODY in needs.request_parts,
        max_body=needs.max_body_bytes,
        peer_certificates=lifecycle_pb2.REQUEST_PART_PEER_CERTIFICATE in needs.request_parts,
    )


def encode_configure(config: Config, hash: str) -> bytes:
    """Raises ValueError for what a configuration file cannot hold."""
    struct = struct_pb2.Struct()
    struct.update(config)
    return lifecycle_pb2.ConfigureRequest(config=struct, hash=hash).SerializeToString()


def decode_configure(data: bytes) -> list[ConfigError]:
    problems = lifecycle_pb2.ConfigureResponse.FromString(data).problems
    return [ConfigError(problem.message, path=problem.path) for problem in problems]


def encode_check_request(request: Request, body: bytes | None, config_hash: str) -> bytes:
    message = filter_pb2.CheckRequestRequest(context=_context(request, config_hash), request=_request(request))
    message.request.headers.extend(_headers(request.headers.raw))
    if body is not None:
        message.request.body = body
    return message.SerializeToString()


def encode_check_response(request: Request, status: int, headers: RawHeaders, config_hash: str) -> bytes:
    return filter_pb2.CheckResponseRequest(
        context=_context(request, config_hash),
        request=_request(request),
        status=status,
        headers=_headers(headers),
    ).SerializeToString()


def decode_check_request(data: bytes) -> Verdict:
    message = filter_pb2.CheckRequestResponse.FromString(data)
    if message.WhichOneof("verdict") == "deny":
        return Deny(_reply(message.deny))
    return Allow(_mutations(message.allow.request_headers), _mutations(message.allow.response_headers))


def decode_check_response(data: bytes) -> ResponseVerdict:
    message = filter_pb2.CheckResponseResponse.FromString(data)
    if message.WhichOneof("verdict") == "replace":
        return Replace(_reply(message.replace))
    kept: filter_pb2.HeaderMutations = getattr(message, "pass")
    return Keep(_mutations(kept.headers))


def encode_watch(names: Collection[str], config_hash: str) -> bytes:
    context = common_pb2.CallContext(config_hash=config_hash)
    return certificates_pb2.WatchCertificatesRequest(context=context, names=names).SerializeToString()


def decode_watch(data: bytes) -> list[Certificate]:
    bundles = certificates_pb2.WatchCertificatesResponse.FromString(data).bundles
    return [
        Certificate(bundle.certificate_chain_pem, bundle.private_key_pem, bundle.name, tuple(bundle.server_names))
        for bundle in bundles
    ]


def _context(request: Request, config_hash: str) -> common_pb2.CallContext:
    return common_pb2.CallContext(
        request_id=request.id,
        traceparent=request.traceparent,
        tracestate=request.tracestate,
        config_hash=config_hash,
    )


def _request(request: Request) -> filter_pb2.Request:
    """Without headers and body."""
    message = filter_pb2.Request(
        method=request.method,
        scheme=request.scheme,
        authority=request.authority,
        path=request.path,
        query=request.query,
        has_query=request.has_query,
        protocol=request.protocol,
        peer=_address(request.peer),
        local=_address(request.local),
        listener=request.listener,
    )
    if request.tls is not None:
        message.tls.SetInParent()
        message.tls.server_name = request.tls.server_name
        message.tls.alpn = request.tls.alpn
        message.tls.version = request.tls.version
        message.tls.peer_certificates.extend(request.tls.peer_certificates)
    if request.route is not None:
        message.route.SetInParent()
        message.route.name = request.route.name
        message.route.metadata.update(request.route.metadata)
    return message


def _address(address: Address) -> common_pb2.Address:
    if address.ip:
        return common_pb2.Address(socket=common_pb2.SocketAddress(ip=address.ip, port=address.port))
    return common_pb2.Address(unix_path=address.unix_path) if address.unix_path else common_pb2.Address()


def _headers(headers: RawHeaders) -> list[common_pb2.Header]:
    return [common_pb2.Header(name=name, value=value) for name, value in headers]


def _reply(reply: common_pb2.Reply) -> Reply:
    return Reply(reply.status, tuple((header.name, header.value) for header in reply.headers), reply.body)


def _mutations(mutations: Iterable[common_pb2.HeaderMutation]) -> tuple[Mutation, ...]:
    return tuple(_mutation(mutation) for mutation in mutations)


def _mutation(message: common_pb2.HeaderMutation) -> Mutation:
    kind = message.WhichOneof("mutation")
    if kind == "set":
        return Mutation("set", message.set.name, message.set.value)
    if kind == "append":
        return Mutation("append", message.append.name, message.append.value)
    return Mutation("remove", message.remove)
