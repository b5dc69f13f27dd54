"""Messages of the contract, to and from our own types. The only module that knows the generated ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from ._certificates import Certificate
from ._errors import CallError, ConfigError
from ._generated import certificates_pb2, common_pb2, filter_pb2, lifecycle_pb2
from ._headers import Headers, RawHeaders
from ._request import Address, Request, Response, Route, TlsInfo
from ._verdicts import Allow, Deny, Keep, Mutation, Reply, ResponseVerdict, Verdict

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
    stream_socket: str
    """Name of the socket of batches; empty without one."""


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
                stream_socket=description.stream_socket,
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
    request: Request | None
    """None: the host has sent none."""


@dataclass(frozen=True, slots=True)
class CheckResponseCall:
    config_hash: str
    response: Response


def decode_check_request(data: bytes) -> CheckRequestCall:
    message = filter_pb2.CheckRequestRequest.FromString(data)
    return CheckRequestCall(message.context.config_hash, _request(message) if message.HasField("request") else None)


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


#: One call of a batch: its `id`, and its `timeout_micros` from when the batch came. The rest is `subject_of`'s.
BatchedCall = filter_pb2.CheckCall


def decode_batch(data: bytes) -> tuple[str, Sequence[BatchedCall]]:
    """Returns the hash of the configuration that the calls are for, and the calls. Raises CallError if it is no batch."""
    try:
        batch = filter_pb2.CheckBatch.FromString(data)
    except DecodeError as error:
        raise CallError("INTERNAL", f"not a batch: {error}") from None
    return batch.config_hash, list(batch.calls)


def subject_of(call: BatchedCall) -> Request | Response:
    """What the call asks about. Raises CallError if that is nothing, or nothing that is known."""
    if call.HasField("request"):
        subject = _request(call.request)
        # With headers there is a request, and asking for it is not cheap.
        if not subject.headers.raw and not call.request.HasField("request"):
            raise no_request()
        return subject
    if call.HasField("response"):
        return _response(call.response)
    raise CallError("UNIMPLEMENTED", "a call that this plugin does not know")


def no_request() -> CallError:
    """Not to be judged as one in which everything is empty."""
    return CallError("INVALID_ARGUMENT", "no request")


def encode_answer(id: int, verdict: Verdict | ResponseVerdict) -> bytes:
    """One answer, as `encode_answers` takes it."""
    if isinstance(verdict, Allow) and not (verdict.request_headers or verdict.response_headers):
        # The most frequent one by far.
        number = _varint(id)
        return _ALLOWED_HEADS[len(number)] + number + _ALLOWED
    if isinstance(verdict, (Allow, Deny)):
        return _piece(filter_pb2.CheckAnswer(id=id, request=_check_request(verdict)))
    return _piece(filter_pb2.CheckAnswer(id=id, response=_check_response(verdict)))


def encode_failure(id: int, error: CallError) -> bytes:
    """The answer of a call that failed."""
    code = grpc.StatusCode[error.code].value[0]
    return _piece(filter_pb2.CheckAnswer(id=id, error=filter_pb2.CheckError(code=code, message=error.message)))


def encode_answers(answers: Iterable[bytes], taken: int, config_hash: str) -> bytes:
    """``config_hash`` is that of the configuration that all of them come of."""
    rest = filter_pb2.CheckBatchAnswer(taken=taken, config_hash=config_hash)
    return b"".join([*answers, rest.SerializeToString()])


def _piece(answer: filter_pb2.CheckAnswer) -> bytes:
    """Messages that stand behind each other are one to their reader."""
    return filter_pb2.CheckBatchAnswer(answers=[answer]).SerializeToString()


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


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


_ALLOWED = filter_pb2.CheckAnswer(
    request=filter_pb2.CheckRequestResponse(allow=filter_pb2.Allow())
).SerializeToString()
# What stands before the id of an allowed call, by the id's length.
_ALLOWED_HEADS = [bytes((0x0A, 1 + length + len(_ALLOWED), 0x08)) for length in range(11)]


def _response(message: filter_pb2.CheckResponseRequest) -> Response:
    return Response(message.status, _headers(message.headers), _request(message))


def _request(message: _Call) -> Request:
    # With what nearly every filter looks at.
    return Request._made_of(_part, message, _headers(message.request.headers))


def _part(message: _Call, name: str) -> Any:
    make = _REQUEST_PARTS.get(name)
    return getattr(message.request, name) if make is None else make(message)


_Call = filter_pb2.CheckRequestRequest | filter_pb2.CheckResponseRequest

#: Of a request: what is not a plain field of its message.
_REQUEST_PARTS: dict[str, Callable[[_Call], Any]] = {
    "peer": lambda call: _address(call.request.peer),
    "local": lambda call: _address(call.request.local),
    "tls": lambda call: _tls(call.request.tls) if call.request.HasField("tls") else None,
    "route": lambda call: _route(call.request.route) if call.request.HasField("route") else None,
    "id": lambda call: call.context.request_id,
    "traceparent": lambda call: call.context.traceparent,
    "tracestate": lambda call: call.context.tracestate,
    "_body": lambda call: call.request.body if call.request.HasField("body") else None,
}


def _headers(headers: Iterable[common_pb2.Header]) -> Headers:
    return Headers._trusted(tuple([(header.name, header.value) for header in headers]))


def _tls(message: filter_pb2.TlsFacts) -> TlsInfo:
    return TlsInfo(message.server_name, message.alpn, message.version, tuple(message.peer_certificates))


def _route(message: filter_pb2.Route) -> Route:
    return Route(message.name, dict(message.metadata))


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
