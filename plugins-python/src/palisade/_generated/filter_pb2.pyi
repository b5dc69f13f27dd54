from . import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CheckBatch(_message.Message):
    __slots__ = ("config_hash", "calls")
    CONFIG_HASH_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    config_hash: str
    calls: _containers.RepeatedCompositeFieldContainer[CheckCall]
    def __init__(self, config_hash: _Optional[str] = ..., calls: _Optional[_Iterable[_Union[CheckCall, _Mapping]]] = ...) -> None: ...

class CheckCall(_message.Message):
    __slots__ = ("id", "timeout_micros", "request", "response")
    ID_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MICROS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    id: int
    timeout_micros: int
    request: CheckRequestRequest
    response: CheckResponseRequest
    def __init__(self, id: _Optional[int] = ..., timeout_micros: _Optional[int] = ..., request: _Optional[_Union[CheckRequestRequest, _Mapping]] = ..., response: _Optional[_Union[CheckResponseRequest, _Mapping]] = ...) -> None: ...

class CheckBatchAnswer(_message.Message):
    __slots__ = ("answers", "taken", "config_hash")
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    CONFIG_HASH_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[CheckAnswer]
    taken: int
    config_hash: str
    def __init__(self, answers: _Optional[_Iterable[_Union[CheckAnswer, _Mapping]]] = ..., taken: _Optional[int] = ..., config_hash: _Optional[str] = ...) -> None: ...

class CheckAnswer(_message.Message):
    __slots__ = ("id", "request", "response", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: int
    request: CheckRequestResponse
    response: CheckResponseResponse
    error: CheckError
    def __init__(self, id: _Optional[int] = ..., request: _Optional[_Union[CheckRequestResponse, _Mapping]] = ..., response: _Optional[_Union[CheckResponseResponse, _Mapping]] = ..., error: _Optional[_Union[CheckError, _Mapping]] = ...) -> None: ...

class CheckError(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class CheckRequestRequest(_message.Message):
    __slots__ = ("context", "request")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    context: _common_pb2.CallContext
    request: Request
    def __init__(self, context: _Optional[_Union[_common_pb2.CallContext, _Mapping]] = ..., request: _Optional[_Union[Request, _Mapping]] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("method", "scheme", "authority", "path", "query", "has_query", "protocol", "headers", "peer", "local", "tls", "listener", "route", "body")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    HAS_QUERY_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    TLS_FIELD_NUMBER: _ClassVar[int]
    LISTENER_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    method: str
    scheme: str
    authority: str
    path: str
    query: str
    has_query: bool
    protocol: str
    headers: _containers.RepeatedCompositeFieldContainer[_common_pb2.Header]
    peer: _common_pb2.Address
    local: _common_pb2.Address
    tls: TlsFacts
    listener: str
    route: Route
    body: bytes
    def __init__(self, method: _Optional[str] = ..., scheme: _Optional[str] = ..., authority: _Optional[str] = ..., path: _Optional[str] = ..., query: _Optional[str] = ..., has_query: bool = ..., protocol: _Optional[str] = ..., headers: _Optional[_Iterable[_Union[_common_pb2.Header, _Mapping]]] = ..., peer: _Optional[_Union[_common_pb2.Address, _Mapping]] = ..., local: _Optional[_Union[_common_pb2.Address, _Mapping]] = ..., tls: _Optional[_Union[TlsFacts, _Mapping]] = ..., listener: _Optional[str] = ..., route: _Optional[_Union[Route, _Mapping]] = ..., body: _Optional[bytes] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("name", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, name: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class TlsFacts(_message.Message):
    __slots__ = ("server_name", "alpn", "version", "peer_certificates")
    SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    ALPN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PEER_CERTIFICATES_FIELD_NUMBER: _ClassVar[int]
    server_name: str
    alpn: str
    version: str
    peer_certificates: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, server_name: _Optional[str] = ..., alpn: _Optional[str] = ..., version: _Optional[str] = ..., peer_certificates: _Optional[_Iterable[bytes]] = ...) -> None: ...

class CheckRequestResponse(_message.Message):
    __slots__ = ("allow", "deny", "config_hash")
    ALLOW_FIELD_NUMBER: _ClassVar[int]
    DENY_FIELD_NUMBER: _ClassVar[int]
    CONFIG_HASH_FIELD_NUMBER: _ClassVar[int]
    allow: Allow
    deny: _common_pb2.Reply
    config_hash: str
    def __init__(self, allow: _Optional[_Union[Allow, _Mapping]] = ..., deny: _Optional[_Union[_common_pb2.Reply, _Mapping]] = ..., config_hash: _Optional[str] = ...) -> None: ...

class Allow(_message.Message):
    __slots__ = ("request_headers", "response_headers")
    REQUEST_HEADERS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_HEADERS_FIELD_NUMBER: _ClassVar[int]
    request_headers: _containers.RepeatedCompositeFieldContainer[_common_pb2.HeaderMutation]
    response_headers: _containers.RepeatedCompositeFieldContainer[_common_pb2.HeaderMutation]
    def __init__(self, request_headers: _Optional[_Iterable[_Union[_common_pb2.HeaderMutation, _Mapping]]] = ..., response_headers: _Optional[_Iterable[_Union[_common_pb2.HeaderMutation, _Mapping]]] = ...) -> None: ...

class CheckResponseRequest(_message.Message):
    __slots__ = ("context", "request", "status", "headers")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    context: _common_pb2.CallContext
    request: Request
    status: int
    headers: _containers.RepeatedCompositeFieldContainer[_common_pb2.Header]
    def __init__(self, context: _Optional[_Union[_common_pb2.CallContext, _Mapping]] = ..., request: _Optional[_Union[Request, _Mapping]] = ..., status: _Optional[int] = ..., headers: _Optional[_Iterable[_Union[_common_pb2.Header, _Mapping]]] = ...) -> None: ...

class CheckResponseResponse(_message.Message):
    __slots__ = ("replace", "config_hash")
    PASS_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    CONFIG_HASH_FIELD_NUMBER: _ClassVar[int]
    replace: _common_pb2.Reply
    config_hash: str
    def __init__(self, replace: _Optional[_Union[_common_pb2.Reply, _Mapping]] = ..., config_hash: _Optional[str] = ..., **kwargs) -> None: ...

class HeaderMutations(_message.Message):
    __slots__ = ("headers",)
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    headers: _containers.RepeatedCompositeFieldContainer[_common_pb2.HeaderMutation]
    def __init__(self, headers: _Optional[_Iterable[_Union[_common_pb2.HeaderMutation, _Mapping]]] = ...) -> None: ...
