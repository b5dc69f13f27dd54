"""gRPC for batches alone, without grpcio: a server for `Filter.CheckBatches`, on a unix socket of its own.

What grpcio does for one message costs more than ten verdicts: a thread that polls, a wake-up of the event loop, three
tasks. Here a batch is judged where it is read from the socket, and what it comes to is written at once. HTTP/2 is the
h2 package's, but for its data, see `_frames`; this is gRPC on top of it, for one method, and what a server owes itself:

- Whatever a peer sends, it harms its own connection at most. What breaks HTTP/2 ends it with GOAWAY.
- Connections, streams, messages, and what a peer does not read are bounded. A peer that does not read is not read from.
- A connection has to begin with HTTP/2 soon. After that, it may be idle: hosts connect before they have calls.

`grpc-timeout` is not looked at: whoever sets it resets the stream when it is over, and calls have deadlines of their own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from struct import Struct
from urllib.parse import quote

import grpc
from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from . import _frames
from ._batches import Batches, Outlet
from ._errors import CallError
from ._server import MAX_MESSAGE

logger = logging.getLogger("palisade")

_GRPC = b"application/grpc"
_PATH = b"/palisade.plugin.v1.Filter/CheckBatches"

_MAX_CONNECTIONS = 128
_MAX_STREAMS = 8
"""Of one connection."""
_MAX_RESETS = 100
"""Streams of one connection in a row that are reset, or opened for something else, without a message on any."""
_PATIENCE = 10.0
"""Seconds in which a connection has to begin with HTTP/2."""

# A batch is 80 KiB at most: one frame, and the next one fits into the window too.
_MAX_FRAME = 128 * 1024
_WINDOW = 1024 * 1024
"""Of one stream."""
_CONNECTION_WINDOW = 4 * 1024 * 1024
_SETTINGS = {
    SettingCodes.MAX_CONCURRENT_STREAMS: _MAX_STREAMS,
    SettingCodes.MAX_HEADER_LIST_SIZE: 16 * 1024,
    SettingCodes.MAX_FRAME_SIZE: _MAX_FRAME,
    SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW,
}
_FIRST_WINDOW = 65_535
"""Of a connection, each way."""
_READ = 64 * 1024
"""Bytes that are read at once."""

# Whether the message is compressed, and how long it is.
_PREFIX = Struct(">BL")

_RESPONSE = [(":status", "200"), ("content-type", "application/grpc")]


class StreamServer:
    """Listens on one socket. Lives on the event loop that it was started on."""

    def __init__(self, make: Callable[[Outlet], Batches]) -> None:
        self.make = make
        self.connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self.stopped = False
        self._all_gone = asyncio.Event()

    async def start(self, path: Path) -> None:
        """Raises OSError when it can't listen there."""
        listener = socket.socket(socket.AF_UNIX)
        try:
            # Linux gives this mode to the file that bind() makes. Elsewhere, the directory is private all the same.
            with suppress(OSError):
                os.fchmod(listener.fileno(), 0o600)
            listener.bind(os.fsencode(path))
            self._path = path
            loop = asyncio.get_running_loop()
            self._server = await loop.create_unix_server(lambda: _Connection(self), sock=listener)
        except BaseException:
            listener.close()
            raise

    async def stop(self, grace: float) -> None:
        """Takes no more batches. Calls that it has get ``grace`` seconds to be answered."""
        self.stopped = True
        if self._server is None or self._path is None:
            return
        self._server.close()
        self._path.unlink(missing_ok=True)
        for connection in list(self.connections):
            connection.stop()
        if self.connections:
            self._all_gone.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._all_gone.wait(), grace)
        for connection in list(self.connections):
            connection.abort()

    def gone(self, connection: _Connection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._all_gone.set()


class _Connection(asyncio.BufferedProtocol):
    _transport: asyncio.Transport

    def __init__(self, server: StreamServer) -> None:
        self._server = server
        self.http2 = H2Connection(H2Configuration(client_side=False))
        # In force from the first frame on, not only when the peer has seen them. What h2 looks at is a copy of some.
        self.http2.local_settings = Settings(client=False, initial_values=_SETTINGS)
        self.http2.decoder.max_header_list_size = _SETTINGS[SettingCodes.MAX_HEADER_LIST_SIZE]
        self.http2.max_inbound_frame_size = self.http2.local_settings.max_frame_size
        # What asyncio would read into otherwise is so large that the kernel has to map it, and clear it, each time.
        self._buffer = bytearray(_READ)
        self._frames = _frames.Frames(_MAX_FRAME)
        self._received = _frames.Received(0, _CONNECTION_WINDOW)
        # How much the peer takes, of all streams together.
        self.room = _FIRST_WINDOW
        # The same of a stream that is opened now.
        self.first_room = self.http2.remote_settings.initial_window_size
        self._to_write: list[bytes] = []
        self.can_write = True
        self._streams: dict[int, _Stream] = {}
        self._resets = 0
        self.stopping = False
        self._waiting: asyncio.TimerHandle | None = None

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._server.stopped:
            # It was accepted before that, and nobody would end it.
            transport.abort()
            return
        if len(self._server.connections) >= _MAX_CONNECTIONS:
            logger.debug("batches: a connection too many")
            transport.abort()
            return
        self._server.connections.add(self)
        self._waiting = asyncio.get_running_loop().call_later(_PATIENCE, self._close, "it does not speak HTTP/2")
        self.http2.initiate_connection()
        self.http2.increment_flow_control_window(_CONNECTION_WINDOW - _FIRST_WINDOW)
        self.write()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for kind, flags, id, frame in self._frames.split(self._buffer[:nbytes]):
                stream = self._streams.get(id)
                if kind == _frames.DATA and stream is not None and not stream.half_closed:
                    self.queue(self._received.take(frame))
                    stream.take(flags, frame)
                    if flags & _frames.END_STREAM and id in self._streams:
                        self._take(_frames.end_of(id))
                elif kind == _frames.WINDOW_UPDATE and (id == 0 or stream is not None):
                    self._widen(stream, frame)
                else:
                    self._take(frame)
        except ProtocolError as error:
            self._close(repr(error), error.error_code)
        except Exception as error:
            self._close(repr(error), ErrorCodes.INTERNAL_ERROR)
        self.write()

    def pause_writing(self) -> None:
        self.can_write = False
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.can_write = True
        self._transport.resume_reading()
        self._go_on()

    def connection_lost(self, error: Exception | None) -> None:
        self._forget()
        self._server.gone(self)

    # HTTP/2.

    def _widen(self, stream: _Stream | None, frame: bytes) -> None:
        by = _frames.increment_of(frame)
        if not by:
            self._take(frame)
        elif stream is None:
            self.room = _frames.wider(self.room, by)
        else:
            stream.room = _frames.wider(stream.room, by)
        self._go_on()

    def _take(self, data: bytes) -> None:
        """What is h2's."""
        for event in self.http2.receive_data(data):
            self._on(event)

    def _on(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            # Of a stream that is answered. Given back where nobody wants it: the window is that of all streams.
            self.http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, RemoteSettingsChanged):
            self._wait_no_longer()
            before, self.first_room = self.first_room, self.http2.remote_settings.initial_window_size
            for each in self._streams.values():
                each.room = _frames.wider(each.room, self.first_room - before)
            self._go_on()
        elif isinstance(event, RequestReceived):
            self._open(event)
        elif isinstance(event, StreamEnded):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                stream.take_end()
        elif isinstance(event, StreamReset):
            self._count_reset()
            stream = self._streams.pop(event.stream_id, None)
            if stream is not None:
                stream.batches.end()
        elif isinstance(event, ConnectionTerminated):
            # h2 takes a connection for closed then, and no host has a call left that it still waits for.
            self._close("the host has ended it")

    def _open(self, event: RequestReceived) -> None:
        id = event.stream_id
        headers = dict(event.headers)
        if self.stopping:
            self.http2.reset_stream(id, ErrorCodes.REFUSED_STREAM)
        elif headers.get(b":method") != b"POST" or not headers.get(b"content-type", b"").startswith(_GRPC):
            self._count_reset()
            self.http2.send_headers(id, [(":status", "415")], end_stream=True)
        elif headers.get(b":path") != _PATH:
            self._count_reset()
            refusal = _status("UNIMPLEMENTED", "only batches are served here")
            self.http2.send_headers(id, _RESPONSE + refusal, end_stream=True)
        else:
            self.http2.send_headers(id, _RESPONSE)
            self._streams[id] = _Stream(self, id, self._server.make)

    def _count_reset(self) -> None:
        self._resets += 1
        if self._resets > _MAX_RESETS:
            self._close("too many streams are opened for nothing", ErrorCodes.ENHANCE_YOUR_CALM)

    def progress(self) -> None:
        """A message came: streams are not opened for nothing."""
        self._resets = 0

    def queue(self, frame: bytes) -> None:
        """To be written behind all that h2 has to say so far."""
        if frame:
            self._to_write += (self.http2.data_to_send(), frame)

    def write(self) -> None:
        data = b"".join((*self._to_write, self.http2.data_to_send()))
        self._to_write.clear()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def _go_on(self) -> None:
        for stream in list(self._streams.values()):
            stream.go_on()

    # Ends.

    def ended(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)
        if self.stopping and not self._streams:
            self._close("the plugin stops")

    def stop(self) -> None:
        self.stopping = True
        for stream in list(self._streams.values()):
            stream.stop()
        if not self._streams:
            self._close("the plugin stops")

    def _close(self, why: str, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """With GOAWAY, unless one has been written or read already."""
        if self._transport.is_closing():
            return
        logger.debug("batches: a connection is closed: %s", why)
        if self.http2.state_machine.state is not ConnectionState.CLOSED:
            self.http2.close_connection(code)
        self.write()
        self._forget()
        self._transport.close()

    def abort(self) -> None:
        self._forget()
        self._transport.abort()

    def _wait_no_longer(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _forget(self) -> None:
        self._wait_no_longer()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.batches.end()


class _Stream:
    """One call of the method, and the outlet of its answers."""

    def __init__(self, connection: _Connection, id: int, make: Callable[[Outlet], Batches]) -> None:
        self._connection = connection
        self._id = id
        self._window = _frames.Received(id, _WINDOW)
        # How much the peer takes. Less than nothing where it has said so afterwards.
        self.room = connection.first_room
        self._received = bytearray()
        # What the peer's windows have had no room for yet.
        self._unsent = b""
        self._trailers: list[tuple[str, str]] | None = None
        self.half_closed = False
        self._stopped = False
        self.batches = make(self)

    def take(self, flags: int, frame: bytes) -> None:
        """Some of a message, or of several."""
        self._connection.queue(self._window.take(frame))
        data = _frames.data_of(flags, frame)
        if self._stopped:
            return None
        received = self._received
        received += data
        while len(received) >= _PREFIX.size and self._trailers is None:
            compressed, length = _PREFIX.unpack_from(received)
            if compressed:
                return self._fail(CallError("UNIMPLEMENTED", "no compression is spoken here"))
            if length > MAX_MESSAGE:
                return self._fail(CallError("RESOURCE_EXHAUSTED", f"a message of {length} bytes"))
            end = _PREFIX.size + length
            if len(received) < end:
                return None
            message = bytes(received[_PREFIX.size : end])
            del received[:end]
            self._connection.progress()
            try:
                self.batches.take(message)
            except CallError as error:
                return self._fail(error)
        return None

    def take_end(self) -> None:
        self.half_closed = True
        if self._stopped:
            return
        if self._received:
            self._fail(CallError("INTERNAL", "the stream ended within a message"))
        else:
            self.batches.finish()

    def stop(self) -> None:
        """The plugin stops: what it has is answered."""
        self._stopped = True
        self.batches.finish()

    def _fail(self, error: CallError) -> None:
        self.batches.end()
        self._received.clear()
        self._unsent = b""
        self._end(_status(error.code, error.message))

    # The outlet.

    def ready(self) -> bool:
        return not self._unsent and self._trailers is None and self._connection.can_write

    def send(self, message: bytes) -> None:
        self._unsent = _PREFIX.pack(0, len(message)) + message
        self._push()

    def finish(self) -> None:
        self._end(_status("OK", ""))

    def go_on(self) -> None:
        if self._unsent:
            self._push()
        if self.ready():
            self.batches.go_on()

    def _end(self, trailers: list[tuple[str, str]]) -> None:
        if self._trailers is None:
            self._trailers = trailers
            self._push()

    def _push(self) -> None:
        """Sends what there is room for, and the trailers behind all of it."""
        connection, http2 = self._connection, self._connection.http2
        while self._unsent:
            room = min(self.room, connection.room, http2.max_outbound_frame_size, len(self._unsent))
            if room <= 0:
                break
            connection.queue(_frames.data_frame(self._id, self._unsent[:room]))
            self.room -= room
            connection.room -= room
            self._unsent = self._unsent[room:]
        try:
            if self._trailers is not None and not self._unsent:
                http2.send_headers(self._id, self._trailers, end_stream=True)
                if not self.half_closed:
                    http2.reset_stream(self._id, ErrorCodes.NO_ERROR)
                connection.ended(self._id)
        except ProtocolError:
            # The peer has just ended the stream, or the connection. What says so stands behind what is looked at now.
            self.batches.end()
        connection.write()


def _status(code: str, message: str) -> list[tuple[str, str]]:
    status = [("grpc-status", str(grpc.StatusCode[code].value[0]))]
    # As gRPC writes it: ASCII, with percent signs.
    return [*status, ("grpc-message", quote(message, safe=" !\"#$&'()*+,/:;<=>?@[]^_`{|}~"))] if message else status
