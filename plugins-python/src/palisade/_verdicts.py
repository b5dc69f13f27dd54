"""What a filter answers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ._headers import HeaderInput, RawHeaders, encode_headers, encode_name

#: Text, bytes as they are, or a value that is written as JSON.
Body = str | bytes | dict[str, Any] | list[Any]

MAX_BODY = 1024 * 1024
_WITHOUT_BODY = (204, 205, 304)
# The proxy frames messages itself. It refuses these, so they are refused here, where the traceback names the line.
_HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length")
)
_HOP_BY_HOP_AND_HOST = _HOP_BY_HOP | {"host"}


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change to a header list."""

    kind: Literal["set", "append", "remove"]
    name: str
    value: bytes = b""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer made by the plugin in place of the upstream's."""

    status: int
    headers: RawHeaders
    body: bytes


@dataclass(frozen=True, slots=True)
class Allow:
    """The request goes on. Made by `allow`."""

    request_headers: tuple[Mutation, ...] = ()
    response_headers: tuple[Mutation, ...] = ()


_PLAIN_ALLOW = Allow()


@dataclass(frozen=True, slots=True)
class Deny:
    """The request goes no further. Made by `deny`."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Keep:
    """The response goes to the client. Made by `keep`."""

    headers: tuple[Mutation, ...] = ()


@dataclass(frozen=True, slots=True)
class Replace:
    """The response is discarded for another one. Made by `replace`."""

    reply: Reply


#: What a request filter returns.
Verdict = Allow | Deny

#: What a response filter returns.
ResponseVerdict = Keep | Replace


def allow(
    *,
    set_headers: HeaderInput = (),
    add_headers: HeaderInput = (),
    remove_headers: Iterable[str] = (),
    response_headers: HeaderInput = (),
    add_response_headers: HeaderInput = (),
    remove_response_headers: Iterable[str] = (),
) -> Allow:
    """Lets the request go on to the next filter and the upstream.

    Of each group, removals come first, then ``set``, then ``add``.

    Args:
        set_headers: request headers that replace every header of the same name.
        add_headers: request headers that come behind those that are there.
        remove_headers: names of request headers to remove.
        response_headers: like ``set_headers``, for the response once it is there, whoever makes it.
        add_response_headers: like ``add_headers``, for the response; use it for ``set-cookie``.
        remove_response_headers: like ``remove_headers``, for the response.

    Raises:
        ValueError: a name is not a header name, a value has control characters, or the header belongs to the proxy
            (framing, hop-by-hop, and ``host`` of the request).
    """
    request = _mutations(set_headers, add_headers, remove_headers, refused=_HOP_BY_HOP_AND_HOST)
    response = _mutations(response_headers, add_response_headers, remove_response_headers, refused=_HOP_BY_HOP)
    return Allow(request, response) if request or response else _PLAIN_ALLOW


def deny(status: int = 403, body: Body = b"", headers: HeaderInput = ()) -> Deny:
    """Answers the client at once; the request goes no further.

    Args:
        status: 200 to 599.
        body: text is sent as ``text/plain; charset=utf-8``, a dict or list as ``application/json``, and bytes as
            they are; at most 1 MiB. A ``content-type`` in ``headers`` wins.
        headers: of the reply. ``content-length`` and the like are the proxy's.

    Raises:
        ValueError: the status is out of range, the body too large or not allowed with this status, or a header is
            not valid.
    """
    return Deny(_reply(status, body, headers))


def keep(
    *,
    set_headers: HeaderInput = (),
    add_headers: HeaderInput = (),
    remove_headers: Iterable[str] = (),
) -> Keep:
    """Lets the response go to the client, its status and body as they are.

    The arguments are those of `allow`, for the headers of the response.
    """
    return Keep(_mutations(set_headers, add_headers, remove_headers, refused=_HOP_BY_HOP))


def replace(status: int, body: Body = b"", headers: HeaderInput = ()) -> Replace:
    """Sends another response in place of this one. The arguments are those of `deny`."""
    return Replace(_reply(status, body, headers))


def _mutations(
    set_: HeaderInput, add: HeaderInput, remove: Iterable[str], *, refused: frozenset[str]
) -> tuple[Mutation, ...]:
    if isinstance(remove, str):
        raise TypeError(f"names of headers to remove come in a list: [{remove!r}]")
    if not (set_ or add or remove):
        return ()
    mutations = [Mutation("remove", encode_name(name)) for name in remove]
    seen: set[str] = set()
    for name, value in encode_headers(set_):
        # Pairs may set two lines of one name: the second must not remove the first.
        mutations.append(Mutation("append" if name in seen else "set", name, value))
        seen.add(name)
    mutations += [Mutation("append", name, value) for name, value in encode_headers(add)]
    _refuse((mutation.name for mutation in mutations), refused)
    return tuple(mutations)


def _reply(status: int, body: Body, headers: HeaderInput) -> Reply:
    # bool is an int, and deny(False) is a mistake.
    if not isinstance(status, int) or isinstance(status, bool):
        raise TypeError(f"a status is an int, not {type(status).__name__}")
    if not 200 <= status <= 599:
        raise ValueError(f"a status is 200 to 599, not {status}")
    content, content_type = _encode_body(body)
    if len(content) > MAX_BODY:
        raise ValueError(f"the body has {len(content)} bytes, and {MAX_BODY} are allowed")
    if content and status in _WITHOUT_BODY:
        raise ValueError(f"a reply with status {status} has no body")
    raw = encode_headers(headers)
    _refuse((name for name, _ in raw), _HOP_BY_HOP)
    if content and content_type and not any(name == "content-type" for name, _ in raw):
        raw = (("content-type", content_type), *raw)
    return Reply(status, raw, content)


def _encode_body(body: Body) -> tuple[bytes, bytes]:
    if isinstance(body, bytes):
        return body, b""
    if isinstance(body, str):
        return body.encode("utf-8", "surrogateescape"), b"text/plain; charset=utf-8"
    if isinstance(body, (dict, list)):
        return json.dumps(body, separators=(",", ":")).encode(), b"application/json"
    raise TypeError(f"a body is a str, bytes, dict or list, not {type(body).__name__}")


def _refuse(names: Iterable[str], refused: frozenset[str]) -> None:
    for name in names:
        if name in refused:
            raise ValueError(f"header {name!r} belongs to the proxy")
