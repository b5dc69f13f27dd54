from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Contract(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTRACT_UNSPECIFIED: _ClassVar[Contract]
    CONTRACT_FILTER: _ClassVar[Contract]
    CONTRACT_CERTIFICATES: _ClassVar[Contract]

class RequestPart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REQUEST_PART_UNSPECIFIED: _ClassVar[RequestPart]
    REQUEST_PART_HEADERS: _ClassVar[RequestPart]
    REQUEST_PART_ADDRESSES: _ClassVar[RequestPart]
    REQUEST_PART_TLS: _ClassVar[RequestPart]
    REQUEST_PART_PEER_CERTIFICATE: _ClassVar[RequestPart]
    REQUEST_PART_ROUTE: _ClassVar[RequestPart]
    REQUEST_PART_BODY: _ClassVar[RequestPart]
CONTRACT_UNSPECIFIED: Contract
CONTRACT_FILTER: Contract
CONTRACT_CERTIFICATES: Contract
REQUEST_PART_UNSPECIFIED: RequestPart
REQUEST_PART_HEADERS: RequestPart
REQUEST_PART_ADDRESSES: RequestPart
REQUEST_PART_TLS: RequestPart
REQUEST_PART_PEER_CERTIFICATE: RequestPart
REQUEST_PART_ROUTE: RequestPart
REQUEST_PART_BODY: RequestPart

class DescribeRequest(_message.Message):
    __slots__ = ("host",)
    HOST_FIELD_NUMBER: _ClassVar[int]
    host: str
    def __init__(self, host: _Optional[str] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("name", "version", "contracts", "filter", "max_concurrent_calls")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTRACTS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENT_CALLS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    contracts: _containers.RepeatedScalarFieldContainer[Contract]
    filter: FilterNeeds
    max_concurrent_calls: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., contracts: _Optional[_Iterable[_Union[Contract, str]]] = ..., filter: _Optional[_Union[FilterNeeds, _Mapping]] = ..., max_concurrent_calls: _Optional[int] = ...) -> None: ...

class FilterNeeds(_message.Message):
    __slots__ = ("request_parts", "max_body_bytes", "response_phase", "batches", "one_stream", "stream_socket")
    REQUEST_PARTS_FIELD_NUMBER: _ClassVar[int]
    MAX_BODY_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_PHASE_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    ONE_STREAM_FIELD_NUMBER: _ClassVar[int]
    STREAM_SOCKET_FIELD_NUMBER: _ClassVar[int]
    request_parts: _containers.RepeatedScalarFieldContainer[RequestPart]
    max_body_bytes: int
    response_phase: bool
    batches: bool
    one_stream: bool
    stream_socket: str
    def __init__(self, request_parts: _Optional[_Iterable[_Union[RequestPart, str]]] = ..., max_body_bytes: _Optional[int] = ..., response_phase: bool = ..., batches: bool = ..., one_stream: bool = ..., stream_socket: _Optional[str] = ...) -> None: ...

class ConfigureRequest(_message.Message):
    __slots__ = ("config", "hash")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    config: _struct_pb2.Struct
    hash: str
    def __init__(self, config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., hash: _Optional[str] = ...) -> None: ...

class ConfigureResponse(_message.Message):
    __slots__ = ("problems", "hash")
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    problems: _containers.RepeatedCompositeFieldContainer[ConfigProblem]
    hash: str
    def __init__(self, problems: _Optional[_Iterable[_Union[ConfigProblem, _Mapping]]] = ..., hash: _Optional[str] = ...) -> None: ...

class ConfigProblem(_message.Message):
    __slots__ = ("path", "message")
    PATH_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    path: str
    message: str
    def __init__(self, path: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...
