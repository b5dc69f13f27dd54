"""What a filter is asked about: requests and responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ._headers import Headers

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Address:
    """One end of a connection: an IP address and a port, or a unix socket."""

    ip: str = ""
    """``"127.0.0.1"``, or ``"::1"`` as RFC 5952 writes IPv6; empty for a unix socket."""
    port: int = 0
    """0 for a unix socket."""
    unix_path: str = ""
    """Path of a unix socket; empty if it has none, and for IP addresses."""

    def __str__(self) -> str:
        if self.ip:
            return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"
        return f"unix:{self.unix_path}"


@dataclass(frozen=True, slots=True)
class TlsInfo:
    """The TLS connection that a request came on."""

    server_name: str = ""
    """The name that the client asked for (SNI), lower case; empty without one."""
    alpn: str = ""
    """``"h2"``, ``"http/1.1"`` or empty."""
    version: str = ""
    """``"TLSv1.2"`` or ``"TLSv1.3"``."""
    peer_certificates: tuple[bytes, ...] = ()
    """DER of the client's verified chain, leaf first. Empty if the client showed none, and unless the filter was
    registered with ``peer_certificates=True``."""


@dataclass(frozen=True, slots=True)
class Route:
    """The route that the proxy chose."""

    name: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The route's ``metadata:`` from the proxy's configuration."""


class _MadeWhenLookedAt:
    """Attributes that are found when they are looked at first: a filter looks at few of a request's."""

    __slots__ = ("_part",)

    _part: tuple[Callable[[Any, str], Any], Any]

    @classmethod
    def _made_of(cls: type[_T], part: Callable[[Any, str], Any], source: Any, headers: Headers) -> _T:
        """``part`` returns the attribute of ``source`` that has a name.

        It may be asked for one twice, by threads that ask at a time.
        """
        made = object.__new__(cls)
        object.__setattr__(made, "_part", (part, source))
        object.__setattr__(made, "headers", headers)
        return made

    if not TYPE_CHECKING:  # It would have every name be an attribute.

        def __getattr__(self, name: str) -> Any:
            # Called when a slot is empty, which none is of an object that its __init__ has made.
            if name not in self.__slots__:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            part, source = self._part
            value = part(source, name)
            object.__setattr__(self, name, value)
            return value


@dataclass(frozen=True, slots=True)
class Request(_MadeWhenLookedAt):
    """A request as the upstream would get it: normalised once, before any filter."""

    method: str
    """Upper case, unless the client wrote an extension method otherwise."""
    scheme: str
    """``"http"`` or ``"https"``."""
    authority: str
    """Host and port that the client asked for, lower case; the port only if the client wrote it."""
    path: str
    """Begins with ``/`` (or is ``*`` for OPTIONS); percent-encoded bytes stay encoded."""
    query: str
    """What stands behind ``?``, without it. Empty both for ``/x`` and ``/x?``; see ``has_query``."""
    has_query: bool
    """Whether there was a ``?`` at all."""
    protocol: str
    """``"HTTP/1.0"``, ``"HTTP/1.1"`` or ``"HTTP/2.0"``."""
    headers: Headers
    """In a response filter: empty."""
    peer: Address
    """The client's end of the connection."""
    local: Address
    """The proxy's end of the connection."""
    tls: TlsInfo | None
    """None on a cleartext connection."""
    listener: str
    """Name of the listener that took the connection."""
    route: Route | None
    """None for a filter that stands before routing."""
    id: str
    """The same that the proxy's log and the ``x-request-id`` header show."""
    traceparent: str
    """W3C trace context, empty without one."""
    tracestate: str
    """W3C trace state, empty without one."""
    _body: bytes | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        """``authority`` without the port. An IPv6 address keeps its brackets."""
        host, colon, port = self.authority.rpartition(":")
        return host if colon and port.isdigit() else self.authority

    @property
    def body(self) -> bytes:
        """The whole body.

        Raises RuntimeError unless the filter was registered with ``@plugin.filter(body=True)``: an empty value
        would let a filter judge a body that it never saw.
        """
        if self._body is None:
            raise RuntimeError("the body was not asked for: register the filter with @plugin.filter(body=True)")
        return self._body


@dataclass(frozen=True, slots=True)
class Response:
    """The head of a response on its way to the client, from the upstream or made by the proxy itself."""

    status: int
    headers: Headers
    request: Request
    """The request that it answers, without headers and body."""
