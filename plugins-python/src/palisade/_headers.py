"""Header lists as a plugin reads and writes them.

Header values are bytes. As text they are UTF-8, and a byte that is not valid UTF-8 becomes a lone surrogate (PEP 383,
"surrogateescape"). So plain text reads as one expects, nothing raises, no two values compare equal unless their
bytes are, and a value that is passed on unchanged keeps its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, overload

_T = TypeVar("_T")

#: What a header value may be given as. Text is encoded as the module's doc says.
HeaderValue = str | bytes

#: What a list of headers may be given as: a mapping, or pairs where a name may come more than once.
HeaderInput = Mapping[str, HeaderValue] | Iterable[tuple[str, HeaderValue]]

RawHeaders = tuple[tuple[str, bytes], ...]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# RFC 9110 section 5.5: no control characters but the tab. Leading and trailing blanks are not part of a value.
_FORBIDDEN_IN_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]|^[ \t]|[ \t]\Z")


class Headers(Mapping[str, str]):
    """The headers of a request or response: ordered, case-insensitive, multi-valued, read-only.

    As a mapping it has each name once, in lower case and in the order of first appearance, with the *first* value:
    ``headers.get("x-user")`` is that or None. A client can send a header twice; where that matters, as it does for
    credentials, look at ``get_all()``. Every line is also in ``multi_items()`` and ``raw``.
    """

    __slots__ = ("raw",)

    raw: RawHeaders
    """Every header line by name in the order of first appearance: lower-case name, and the value's bytes as received."""

    def __init__(self, headers: HeaderInput = ()) -> None:
        self.raw = encode_headers(headers)

    @classmethod
    def _trusted(cls, raw: RawHeaders) -> Headers:
        """Lines that come from the host, which has validated them and put the names in lower case."""
        headers = cls.__new__(cls)
        headers.raw = raw
        return headers

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    @overload
    def get(self, name: str, /) -> str | None: ...
    @overload
    def get(self, name: str, /, default: str | _T) -> str | _T: ...
    def get(self, name: str, default: Any = None) -> Any:
        """Returns the first value of ``name``, or ``default``."""
        # As `Mapping` does it, a header that is missing costs an exception.
        wanted = name.lower()
        for candidate, value in self.raw:
            if candidate == wanted:
                return decode_value(value)
        return default

    def get_all(self, name: str) -> list[str]:
        """Returns every value of ``name`` in its order; lines are not split at commas."""
        wanted = name.lower()
        return [decode_value(value) for candidate, value in self.raw if candidate == wanted]

    def multi_items(self) -> list[tuple[str, str]]:
        """Returns every header line, those of one name together."""
        return [(name, decode_value(value)) for name, value in self.raw]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and any(candidate == name.lower() for candidate, _ in self.raw)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for name, _ in self.raw))

    def __len__(self) -> int:
        return len({name for name, _ in self.raw})

    def __eq__(self, other: object) -> bool:
        return self.raw == other.raw if isinstance(other, Headers) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"Headers({self.multi_items()!r})"


def decode_value(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def encode_headers(headers: HeaderInput) -> RawHeaders:
    """Checks names and values, so that a mistake shows where it was made and not as a refusal by the host."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return tuple((encode_name(name), encode_value(name, value)) for name, value in pairs)


def encode_name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a header name is a str, not {type(name).__name__}")
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is not a header name (RFC 9110 section 5.1)")
    return name.lower()


def encode_value(name: str, value: HeaderValue) -> bytes:
    if not isinstance(value, (str, bytes)):
        raise TypeError(f"the value of header {name!r} is a str or bytes, not {type(value).__name__}")
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    if _FORBIDDEN_IN_VALUE.search(raw):
        raise ValueError(f"the value of header {name!r} has control characters, or blanks at an end")
    return raw
