"""The frames of HTTP/2 that a stream of batches is made of: DATA, and WINDOW_UPDATE. The rest is the h2 package's.

h2 takes as long for a frame of DATA as many verdicts do. So it sees none of a stream that is open, and no update of a
window: what it knows of windows stays as it was when they were opened. They are kept here, for both directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

from h2.exceptions import FlowControlError, FrameTooLargeError, ProtocolError

DATA = 0
WINDOW_UPDATE = 8
OTHER = -1
"""One for h2, whatever it is."""

END_STREAM = 1
_END_HEADERS = 4
_PADDED = 8
# HEADERS, PUSH_PROMISE and CONTINUATION: until the last one of a block has come, nothing else may.
_HEADERS = (1, 5, 9)

_PREFACE = 24
# Length, as two numbers; kind, flags and stream.
_HEAD = Struct(">HBBBL")
_INCREMENT = Struct(">L")
_MAX_WINDOW = _MAX_STREAM = 2**31 - 1


class Frames:
    """Splits what comes into frames."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._received = bytearray()
        self._preface = _PREFACE
        self._in_headers = False

    def split(self, data: bytes | bytearray) -> Iterator[tuple[int, int, int, bytes]]:
        """Kind, flags and stream of each, and its bytes from the first to the last. Raises ProtocolError."""
        if self._preface:
            preface, data = data[: self._preface], data[self._preface :]
            self._preface -= len(preface)
            yield OTHER, 0, 0, bytes(preface)
        received = self._received
        received += data
        while len(received) >= _HEAD.size:
            high, low, kind, flags, stream = _HEAD.unpack_from(received)
            length = high << 8 | low
            if length > self._max_size:
                raise FrameTooLargeError(f"a frame of {length} bytes")
            end = _HEAD.size + length
            if len(received) < end:
                return
            frame = bytes(received[:end])
            del received[:end]
            for_h2 = self._in_headers
            if kind in _HEADERS:
                self._in_headers = not flags & _END_HEADERS
            yield OTHER if for_h2 else kind, flags, stream & _MAX_STREAM, frame


def data_of(flags: int, frame: bytes) -> bytes:
    """Of a frame of DATA, without its padding."""
    if not flags & _PADDED:
        return frame[_HEAD.size :]
    padding = frame[_HEAD.size] if len(frame) > _HEAD.size else 0
    end = len(frame) - padding
    if end <= _HEAD.size:
        raise ProtocolError("more padding than frame")
    return frame[_HEAD.size + 1 : end]


def increment_of(frame: bytes) -> int:
    """Of a frame of WINDOW_UPDATE. 0 for one that breaks the rules, which h2 knows."""
    if len(frame) != _HEAD.size + _INCREMENT.size:
        return 0
    increment: int = _INCREMENT.unpack_from(frame, _HEAD.size)[0] & _MAX_WINDOW
    return increment


def data_frame(stream: int, data: bytes) -> bytes:
    length = len(data)
    return _HEAD.pack(length >> 8, length & 0xFF, DATA, 0, stream) + data


def end_of(stream: int) -> bytes:
    """The end of a stream, for h2, once its last data is taken."""
    return _HEAD.pack(0, 0, DATA, END_STREAM, stream)


class Received:
    """A window of ours. What comes is taken at once, and given back when it is half of the window."""

    def __init__(self, stream: int, size: int) -> None:
        self._stream = stream
        self._size = size
        self._taken = 0

    def take(self, frame: bytes) -> bytes:
        """Returns an update to be sent, or nothing."""
        self._taken += len(frame) - _HEAD.size
        if self._taken < self._size // 2:
            return b""
        taken, self._taken = self._taken, 0
        return _HEAD.pack(0, _INCREMENT.size, WINDOW_UPDATE, 0, self._stream) + _INCREMENT.pack(taken)


def wider(window: int, by: int) -> int:
    """A window of the peer's. Raises FlowControlError when it gets too large."""
    if window + by > _MAX_WINDOW:
        raise FlowControlError("a window that is too large")
    return window + by
