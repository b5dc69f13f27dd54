"""Messages of the contract, to and from our own types. The only module that knows the generated ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import struct_pb2
from grpc_health.v1 import health_pb2

from ._certificates import Certificate
from ._errors import CallError, ConfigError
from ._generated import certificates_pb2, common_pb2, filter_pb2, lifecycle_pb2
from ._headers import Headers, RawHeaders
from ._request import Address, Request, Response, Route, TlsInfo
from ._verdicts import Allow, Deny, Keep, Mutation, Replace, Reply, ResponseVerdict, Verdict

#: The value of ``config:``. Do not change it: every call gets the same one.
Config = dict[str, Any]

# Up to here every integer is a double of its own; hosts take no larger one in `config:`.
_MAX_EXACT = 2.0**53


@dataclass(frozen=True, slots=True)
class Description:
    """What Describe answers."""

    name: str
    version: str
    filter: bool
    certificates: bool
    response_phase: bool
    body: bool
    max_body: int
    peer_certificates: bool
    max_concurrent_calls: int


def decode_describe(data: bytes) -> str:
    """Returns the host's name and version."""
    return lifecycle_pb2.DescribeRequest.FromString(data).host


def encode_describe(description: Description) -> bytes:
    answer = lifecycle_pb2.DescribeResponse(
        name=description.name,
        version=description.version,
        max_concurrent_calls=description.max_concurrent_calls,
    )
    if description.filter:
        answer.contracts.append(lifecycle_pb2.CONTRACT_FILTER)
        parts = []
        if description.body or description.peer_certificates:
            parts = [
                lifecycle_pb2.REQUEST_PART_HEADERS,
                lifecycle_pb2.REQUEST_PART_ADDRESSES,
                lifecycle_pb2.REQUEST_PART_TLS,
                lifecycle_pb2.REQUEST_PART_ROUTE,
            ]
        if description.peer_certificates:
            parts.append(lifecycle_pb2.REQUEST_PART_PEER_CERTIFICATE)
        if description.body:
            parts.append(lifecycle_pb2.REQUEST_PART_BODY)
        answer.filter.CopyFrom(
            lifecycle_pb2.FilterNeeds(
                request_parts=parts,
                max_body_bytes=description.max_body,
                response_phase=description.response_phase,
                batches=True,
                one_stream=True,
            )
        )
    if description.certificates:
        answer.contracts.append(lifecycle_pb2.CONTRACT_CERTIFICATES)
    return answer.SerializeToString()


@dataclass(frozen=True, slots=True)
class Configured:
    """A configuration, and what the host calls it."""

    config: Config
    hash: str


def decode_configure(data: bytes) -> Configured:
    message = lifecycle_pb2.ConfigureRequest.FromString(data)
    return Configured(_dict(message.config), message.hash)


def encode_configure(problems: Sequence[ConfigError], hash: str) -> bytes:
    """``hash`` is that of the configuration in force; empty where there is none."""
    return lifecycle_pb2.ConfigureResponse(
        problems=[lifecycle_pb2.ConfigProblem(path=problem.path, message=problem.message) for problem in problems],
        hash=hash,
    ).SerializeToString()


def _dict(struct: struct_pb2.Struct) -> Config:
    return {key: _value(value) for key, value in struct.fields.items()}


def _value(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) <= _MAX_EXACT else number
    if kind == "struct_value":
        return _dict(value.struct_value)
    if kind == "list_value":
        return [_value(item) for item in value.list_value.values]
    if kind == "string_value":
        return value.string_value
    if kind == "bool_value":
        return value.bool_value
    return None


@dataclass(frozen=True, slots=True)
class CheckRequestCall:
    config_hash: str
    request: Request


@dataclass(frozen=True, slots=True)
class CheckResponseCall:
    config_hash: str
    response: Response


def decode_check_request(data: bytes) -> CheckRequestCall:
    message = filter_pb2.CheckRequestRequest.FromString(data)
    return CheckRequestCall(message.context.config_hash, _request(message.request, message.context))


def decode_check_response(data: bytes) -> CheckResponseCall:
    message = filter_pb2.CheckResponseRequest.FromString(data)
    return CheckResponseCall(message.context.config_hash, _response(message))


def encode_check_request(verdict: Verdict, config_hash: str) -> bytes:
    answer = _check_request(verdict)
    answer.config_hash = config_hash
    return answer.SerializeToString()


def encode_check_response(verdict: ResponseVerdict, config_hash: str) -> bytes:
    answer = _check_response(verdict)
    answer.config_hash = config_hash
    return answer.SerializeToString()


@dataclass(slots=True)
class BatchedCall:
    """One call of a batch. What it is about is decoded when it is looked at, on the thread that works on it."""

    id: int
    timeout: float
    """Seconds from now."""
    asks_response: bool
    """Whether it is about a response, and not about a request."""
    is_known: bool
    _message: filter_pb2.CheckCall
    configured: Configured | None = None
    """What it is judged by; set when it is begun."""

    def request(self) -> Request:
        call = self._message.request
        return _request(call.request, call.context)

    def response(self) -> Response:
        return _response(self._message.response)


@dataclass(slots=True)
class BatchedAnswer:
    """One answer on its way."""

    size: int
    """In bytes, about."""
    _message: filter_pb2.CheckAnswer
    config_hash: str = ""
    """Of the configuration that it comes of; empty for what is no verdict."""


def decode_batch(data: bytes) -> tuple[str, list[BatchedCall]]:
    """Returns the hash of the configuration that the calls are for, and the calls."""
    batch = filter_pb2.CheckBatch.FromString(data)
    calls = []
    for call in batch.calls:
        kind = call.WhichOneof("call")
        timeout = call.timeout_micros / 1_000_000
        calls.append(BatchedCall(call.id, timeout, kind == "response", kind is not None, call))
    return batch.config_hash, calls


def request_answer(id: int, verdict: Verdict) -> BatchedAnswer:
    if verdict is _PLAIN_ALLOW or verdict == _PLAIN_ALLOW:
        return BatchedAnswer(0, filter_pb2.CheckAnswer(id=id, request=_ALLOWED))
    return _answer(filter_pb2.CheckAnswer(id=id, request=_check_request(verdict)))


def response_answer(id: int, verdict: ResponseVerdict) -> BatchedAnswer:
    return _answer(filter_pb2.CheckAnswer(id=id, response=_check_response(verdict)))


def failed_answer(id: int, error: CallError) -> BatchedAnswer:
    code = grpc.StatusCode[error.code].value[0]
    return _answer(
        filter_pb2.CheckAnswer(id=id, error=filter_pb2.CheckError(code=code, message=error.message))
    )


def _answer(message: filter_pb2.CheckAnswer) -> BatchedAnswer:
    return BatchedAnswer(message.ByteSize(), message)


def encode_batch_answer(answers: Iterable[BatchedAnswer], taken: int, config_hash: str) -> bytes:
    """``config_hash`` is that of the configuration that all of them come of."""
    messages = [answer._message for answer in answers]
    return filter_pb2.CheckBatchAnswer(answers=messages, taken=taken, config_hash=config_hash).SerializeToString()


def _check_request(verdict: Verdict) -> filter_pb2.CheckRequestResponse:
    if isinstance(verdict, Allow):
        return filter_pb2.CheckRequestResponse(
            allow=filter_pb2.Allow(
                request_headers=_mutations(verdict.request_headers),
                response_headers=_mutations(verdict.response_headers),
            )
        )
    return filter_pb2.CheckRequestResponse(deny=_reply(verdict.reply))


def _check_response(verdict: ResponseVerdict) -> filter_pb2.CheckResponseResponse:
    if isinstance(verdict, Keep):
        answer = filter_pb2.CheckResponseResponse()
        # A field named like a keyword.
        getattr(answer, "pass").CopyFrom(filter_pb2.HeaderMutations(headers=_mutations(verdict.headers)))
        return answer
    return filter_pb2.CheckResponseResponse(replace=_reply(verdict.reply))


_PLAIN_ALLOW = Allow()
_ALLOWED = filter_pb2.CheckRequestResponse(allow=filter_pb2.Allow())


def _response(message: filter_pb2.CheckResponseRequest) -> Response:
    request = _request(message.request, message.context)
    return Response(message.status, _headers(message.headers), request)


def _request(message: filter_pb2.Request, context: common_pb2.CallContext) -> Request:
    tls = message.tls
    return Request(
        method=message.method,
        scheme=message.scheme,
        authority=message.authority,
        path=message.path,
        query=message.query,
        has_query=message.has_query,
        protocol=message.protocol,
        headers=_headers(message.headers),
        peer=_address(message.peer),
        local=_address(message.local),
        tls=TlsInfo(tls.server_name, tls.alpn, tls.version, tuple(tls.peer_certificates))
        if message.HasField("tls")
        else None,
        listener=message.listener,
        route=Route(message.route.name, dict(message.route.metadata)) if message.HasField("route") else None,
        id=context.request_id,
        traceparent=context.traceparent,
        tracestate=context.tracestate,
        _body=message.body if message.HasField("body") else None,
    )


def _headers(headers: Iterable[common_pb2.Header]) -> Headers:
    return Headers._trusted(tuple([(header.name, header.value) for header in headers]))


def _address(message: common_pb2.Address) -> Address:
    if message.HasField("socket"):
        return Address(ip=message.socket.ip, port=message.socket.port)
    return Address(unix_path=message.unix_path)


def _reply(reply: Reply) -> common_pb2.Reply:
    return common_pb2.Reply(status=reply.status, headers=_raw_headers(reply.headers), body=reply.body)


def _raw_headers(headers: RawHeaders) -> list[common_pb2.Header]:
    return [common_pb2.Header(name=name, value=value) for name, value in headers]


def _mutations(mutations: Iterable[Mutation]) -> list[common_pb2.HeaderMutation]:
    return [_mutation(mutation) for mutation in mutations]


def _mutation(mutation: Mutation) -> common_pb2.HeaderMutation:
    if mutation.kind == "remove":
        return common_pb2.HeaderMutation(remove=mutation.name)
    header = common_pb2.Header(name=mutation.name, value=mutation.value)
    if mutation.kind == "set":
        return common_pb2.HeaderMutation(set=header)
    return common_pb2.HeaderMutation(append=header)


@dataclass(frozen=True, slots=True)
class WatchCall:
    config_hash: str
    names: frozenset[str]


def decode_watch(data: bytes) -> WatchCall:
    message = certificates_pb2.WatchCertificatesRequest.FromString(data)
    return WatchCall(message.context.config_hash, frozenset(message.names))


def encode_watch(certificates: Iterable[Certificate]) -> bytes:
    """Encodes everything that there is: no message depends on one before it."""
    return certificates_pb2.WatchCertificatesResponse(
        bundles=[
            certificates_pb2.CertificateBundle(
                name=certificate.name,
                server_names=certificate.server_names,
                certificate_chain_pem=certificate.chain,
                private_key_pem=certificate.private_key,
            )
            for certificate in certificates
        ],
        complete=True,
    ).SerializeToString()


def decode_health(data: bytes) -> str:
    """Returns the name of the service that is asked about."""
    return health_pb2.HealthCheckRequest.FromString(data).service


def encode_health(*, serving: bool) -> bytes:
    status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
    return health_pb2.HealthCheckResponse(status=status).SerializeToString()


UNKNOWN_HEALTH = health_pb2.HealthCheckResponse(
    status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
).SerializeToString()
