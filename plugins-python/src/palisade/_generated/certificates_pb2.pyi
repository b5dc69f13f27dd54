from . import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchCertificatesRequest(_message.Message):
    __slots__ = ("context", "names")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    context: _common_pb2.CallContext
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, context: _Optional[_Union[_common_pb2.CallContext, _Mapping]] = ..., names: _Optional[_Iterable[str]] = ...) -> None: ...

class WatchCertificatesResponse(_message.Message):
    __slots__ = ("bundles", "removed", "complete")
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    bundles: _containers.RepeatedCompositeFieldContainer[CertificateBundle]
    removed: _containers.RepeatedScalarFieldContainer[str]
    complete: bool
    def __init__(self, bundles: _Optional[_Iterable[_Union[CertificateBundle, _Mapping]]] = ..., removed: _Optional[_Iterable[str]] = ..., complete: bool = ...) -> None: ...

class CertificateBundle(_message.Message):
    __slots__ = ("name", "server_names", "certificate_chain_pem", "private_key_pem")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERVER_NAMES_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_CHAIN_PEM_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_KEY_PEM_FIELD_NUMBER: _ClassVar[int]
    name: str
    server_names: _containers.RepeatedScalarFieldContainer[str]
    certificate_chain_pem: bytes
    private_key_pem: bytes
    def __init__(self, name: _Optional[str] = ..., server_names: _Optional[_Iterable[str]] = ..., certificate_chain_pem: _Optional[bytes] = ..., private_key_pem: _Optional[bytes] = ...) -> None: ...
