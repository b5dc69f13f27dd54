"""The server of batches: it is gRPC to whoever speaks it, and whoever does not harms only itself."""

from __future__ import annotations

import asyncio
import gc
import random
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from harness import DEADLINE
from hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from palisade import Plugin, Request, Verdict, _batches, _stream, allow, deny
from palisade._generated import filter_pb2
from palisade._server import Server
from palisade._wire import Configured

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/palisade.plugin.v1.Filter/CheckBatches",
    ":authority": "localhost",
    "content-type": "application/grpc",
    "te": "trailers",
}
ACK = SettingsFrame(0, flags=["ACK"])


class Serving:
    """A server in this process."""

    def __init__(self, server: Server, socket: Path) -> None:
        self.server = server
        self.socket = socket
        self.streams: _stream.StreamServer
        self.go = asyncio.Event()
        self.failures: list[Any] = []
        self.peers: list[Peer] = []

    async def connect(self, *frames: Frame | bytes) -> Peer:
        peer = Peer(*await asyncio.open_unix_connection(self.socket))
        peer.send(*frames)
        self.peers.append(peer)
        return peer

    async def still_serves(self) -> None:
        peer = await self.connect(PREFACE, SettingsFrame(0), opening(), batch((1, "/no")))
        assert (await peer.answers(1))[1].request.deny.status == 403
        await peer.close()
        assert self.failures == []


@asynccontextmanager
async def serving() -> AsyncIterator[Serving]:
    plugin = Plugin("test")

    @plugin.filter
    async def check(request: Request, config: object) -> Verdict:
        if request.path == "/wait":
            await it.go.wait()
        return deny(403, request.path) if request.path.startswith("/no") else allow()

    with tempfile.TemporaryDirectory(prefix="plugin-", dir="/tmp") as directory:
        server = Server(plugin._registrations, lambda: None)
        server._in_force = Configured({}, "1")
        it = Serving(server, Path(directory, "batches"))
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: it.failures.append(context))
        await server.start(f"unix:{directory}/plugin.sock")
        await server.start_streams(it.socket)
        assert server._streams is not None
        it.streams = server._streams
        try:
            yield it
        finally:
            await server.stop(0)
            for peer in it.peers:
                await peer.close()
        assert not it.socket.exists()
        assert it.failures == []


class Peer:
    """One that knows frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()

    def send(self, *frames: Frame | bytes) -> None:
        # Written at once: a server that closes the connection half-way would break what comes behind.
        self._writer.write(b"".join(frame if isinstance(frame, bytes) else frame.serialize() for frame in frames))

    def send_end(self) -> None:
        self._writer.write_eof()

    async def frame(self) -> Frame | None:
        """None: the connection is closed."""
        try:
            frame, length = Frame.parse_frame_header(memoryview(await self._reader.readexactly(9)))
            frame.parse_body(memoryview(await self._reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return frame

    async def until(self, kind: type[Frame], stream: int | None = None) -> Any:
        while (frame := await self.frame()) is not None:
            if isinstance(frame, kind) and stream in (None, frame.stream_id) and "ACK" not in frame.flags:
                return frame
        raise AssertionError(f"closed without {kind.__name__}")

    async def headers(self, stream: int = 1) -> dict[str, str]:
        frame = await self.until(HeadersFrame, stream)
        fields = dict(self._decoder.decode(frame.data))
        return {str(name): str(value) for name, value in fields.items()} | {"end": str("END_STREAM" in frame.flags)}

    async def answers(self, count: int, stream: int = 1) -> dict[int, Any]:
        got: dict[int, Any] = {}
        received = b""
        while len(got) < count:
            frame = await self.until(DataFrame, stream)
            # What no peer has asked to be otherwise.
            assert len(frame.data) <= 16384
            received += bytes(frame.data)
            while len(received) >= 5 and len(received) >= (end := 5 + int.from_bytes(received[1:5], "big")):
                message = filter_pb2.CheckBatchAnswer.FromString(received[5:end])
                got.update({answer.id: answer for answer in message.answers})
                received = received[end:]
        return got

    async def closed(self) -> list[Frame]:
        """All that comes up to the end of the connection."""
        frames = []
        while (frame := await self.frame()) is not None:
            frames.append(frame)
        return frames

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


def opening(stream: int = 1, end: bool = False, **headers: str) -> HeadersFrame:
    # Of a table of its own, which no header gets into: frames may stand in any order.
    given = HEADERS | {f":{name}" if name in ("path", "method") else name: value for name, value in headers.items()}
    block = Encoder().encode([(name, value, True) for name, value in given.items()])
    return HeadersFrame(stream, block, flags=["END_HEADERS", *(["END_STREAM"] if end else [])])


def grpc_message(body: bytes, compressed: int = 0) -> bytes:
    return bytes([compressed]) + len(body).to_bytes(4, "big") + body


def a_batch(*calls: tuple[int, str]) -> bytes:
    message = filter_pb2.CheckBatch()
    for id, path in calls:
        call = message.calls.add(id=id, timeout_micros=60_000_000)
        call.request.request.path = path
    return message.SerializeToString()


def batch(*calls: tuple[int, str], stream: int = 1, end: bool = False) -> DataFrame:
    return data(grpc_message(a_batch(*calls)), stream, end)


def data(body: bytes, stream: int = 1, end: bool = False) -> DataFrame:
    return DataFrame(stream, body, flags=["END_STREAM"] if end else [])


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def sync() -> None:
        asyncio.run(asyncio.wait_for(test(), DEADLINE))

    sync.__name__ = test.__name__
    return sync


# Those who speak gRPC.


@asynccontextmanager
async def grpc_stream(it: Serving, **how: Any) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"unix:{it.socket}", options=[("grpc.max_receive_message_length", -1)]) as channel:
        yield channel.stream_stream("/palisade.plugin.v1.Filter/CheckBatches")(**how)


async def ask(stream: Any, *calls: tuple[int, str]) -> dict[int, Any]:
    await stream.write(a_batch(*calls))
    got: dict[int, Any] = {}
    while len(got) < len(calls):
        message = filter_pb2.CheckBatchAnswer.FromString(await stream.read())
        got.update({answer.id: answer for answer in message.answers})
    return got


@run
async def test_grpcio_is_served() -> None:
    async with serving() as it, grpc_stream(it, metadata=[("x-some", "thing"), ("x-bin", b"\xff")]) as stream:
        assert stat.S_IMODE(it.socket.stat().st_mode) == 0o600
        for turn in range(1, 200):
            got = await ask(stream, (2 * turn, "/"), (2 * turn + 1, "/no"))
            assert [got[2 * turn + each].request.WhichOneof("verdict") for each in (0, 1)] == ["allow", "deny"]
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() == grpc.StatusCode.OK


@run
async def test_messages_may_be_larger_than_frames_and_windows() -> None:
    async with serving() as it, grpc_stream(it) as stream:
        # Each answer has 900 KB, and more than the windows of the whole connection are filled both ways.
        for turn in range(1, 9):
            path = "/no" + "x" * 900_000
            assert (await ask(stream, (turn, path)))[turn].request.deny.body == path.encode()


@run
async def test_grpcio_may_cancel_or_run_out_of_time() -> None:
    async with serving() as it:
        async with grpc_stream(it) as stream:
            await ask(stream, (1, "/"))
            await stream.write(a_batch((2, "/wait")))
            stream.cancel()
        async with grpc_stream(it, timeout=0.2) as stream:
            await stream.write(a_batch((1, "/wait")))
            assert await stream.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: not any(each._streams for each in it.streams.connections))


@run
async def test_what_is_not_served_is_unimplemented() -> None:
    async with serving() as it:
        async with grpc.aio.insecure_channel(f"unix:{it.socket}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                method: Any = channel.unary_unary("/palisade.plugin.v1.Lifecycle/Describe")
                await method(b"")
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert refused.value.details() == "only batches are served here"
        peer = await it.connect(PREFACE, SettingsFrame(0), opening(method="GET", end=True))
        refused_too = await peer.headers()
        assert (refused_too[":status"], refused_too["end"]) == ("415", "True")
        await peer.close()


@pytest.mark.parametrize(
    "message, code",
    [
        (grpc_message(b"", compressed=1), grpc.StatusCode.UNIMPLEMENTED),
        (b"\0\xff\xff\xff\xff", grpc.StatusCode.RESOURCE_EXHAUSTED),
        (b"\0\0\0\0\1", grpc.StatusCode.INTERNAL),
        (b"\0\0", grpc.StatusCode.INTERNAL),
        (grpc_message(b"\xff"), grpc.StatusCode.INTERNAL),
    ],
)
def test_what_is_no_message_of_grpc_ends_the_stream_alone(message: bytes, code: grpc.StatusCode) -> None:
    async def test() -> None:
        async with serving() as it:
            peer = await it.connect(PREFACE, SettingsFrame(0), opening(), data(message, end=len(message) == 2))
            if message == b"\0\0\0\0\1":
                peer.send(data(b"", end=True))
            assert (await peer.headers())[":status"] == "200"
            trailers = await peer.headers()
            assert (trailers["grpc-status"], trailers["end"]) == (str(code.value[0]), "True")
            peer.send(opening(3), batch((1, "/"), stream=3))
            assert set(await peer.answers(1, stream=3)) == {1}
            await peer.close()

    run(test)()


# Those who speak HTTP/2.


@run
async def test_frames_as_http2_allows_them() -> None:
    async with serving() as it:
        # The preface in pieces, priorities, frames of no known type, padding, headers and messages in pieces.
        peer = await it.connect()
        for part in (PREFACE[:5], PREFACE[5:]):
            peer.send(part)
            await asyncio.sleep(0)
        head = opening()
        first = HeadersFrame(1, head.data[:10])
        rest = [ContinuationFrame(1, head.data[10:20]), ContinuationFrame(1, head.data[20:], flags=["END_HEADERS"])]
        message = grpc_message(a_batch((1, "/no")))
        peer.send(SettingsFrame(0), b"\0\0\1\xbe\0\0\0\0\0?", PriorityFrame(1, depends_on=0), first, *rest)
        for byte in message[:-1]:
            peer.send(DataFrame(1, bytes([byte]), pad_length=3, flags=["PADDED"]))
        peer.send(PingFrame(0, b"8 octets"))
        # In order: what was asked before is answered before.
        assert (await peer.headers())[":status"] == "200"
        while "ACK" not in (pong := await peer.frame()).flags or not isinstance(pong, PingFrame):  # type: ignore[union-attr]
            pass
        assert pong.opaque_data == b"8 octets"
        peer.send(data(message[-1:], end=True))
        assert (await peer.answers(1))[1].request.deny.body == b"/no"
        assert (await peer.headers())["grpc-status"] == "0"


@run
async def test_windows_and_frame_sizes_of_the_peer_are_kept() -> None:
    async with serving() as it:
        small = {SettingsFrame.INITIAL_WINDOW_SIZE: 10}
        peer = await it.connect(PREFACE, SettingsFrame(0, settings=small), opening(), batch((1, "/no" + "x" * 100)))
        got = b""
        while len(got) < 10:
            got += (await peer.until(DataFrame)).data
        # None is sent before there is room again.
        peer.send(PingFrame(0, b"8 octets"))
        while not isinstance(frame := await peer.frame(), PingFrame):
            assert not isinstance(frame, DataFrame)
        assert len(got) == 10
        peer.send(WindowUpdateFrame(1, window_increment=5))
        got += (await peer.until(DataFrame)).data
        assert len(got) == 15
        peer.send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 20}))
        while len(got) < 5 or len(got) < 5 + int.from_bytes(got[1:5], "big"):
            frame = await peer.until(DataFrame)
            assert len(frame.data) <= 16384
            got += frame.data
        large = grpc_message(a_batch((2, "/no" + "x" * 200_000)))
        peer.send(WindowUpdateFrame(0, window_increment=1 << 20), data(large[:100_000]), data(large[100_000:], end=True))
        assert set(await peer.answers(1)) == {2}
        await peer.close()


@run
async def test_a_window_may_shrink_below_nothing() -> None:
    async with serving() as it:
        first = SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 100})
        peer = await it.connect(PREFACE, first, opening(), batch((1, "/no" + "x" * 200)))
        got = b""
        while len(got) < 100:
            got += (await peer.until(DataFrame)).data
        assert len(got) == 100
        # That of the connection is wide enough. Of the stream's, 95 have to come before anything may be sent.
        peer.send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 10}))
        peer.send(WindowUpdateFrame(1, window_increment=90), PingFrame(0, b"8 octets"))
        while not isinstance(frame := await peer.frame(), PingFrame):
            assert not isinstance(frame, DataFrame)
        # With the bit set that means nothing.
        peer.send(b"\0\0\4\x08\0\0\0\0\1\x80\0\0\5")
        assert len((await peer.until(DataFrame)).data) == 5
        await peer.close()


@run
async def test_the_window_of_a_connection_is_that_of_all_its_streams() -> None:
    async with serving() as it:
        wide = SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 20})
        path = "/no" + "x" * 40_000
        peer = await it.connect(PREFACE, wide, opening(), opening(3), batch((1, path)), batch((2, path), stream=3))
        got = 0
        while got < 65_535:
            got += len((await peer.until(DataFrame)).data)
        assert got == 65_535
        # That of a stream that is over is nobody's.
        peer.send(opening(5, path="/x", end=True), WindowUpdateFrame(5, window_increment=1), PingFrame(0, b"8 octets"))
        while not isinstance(frame := await peer.frame(), PingFrame):
            assert not isinstance(frame, DataFrame)
        peer.send(WindowUpdateFrame(0, window_increment=1))
        assert len((await peer.until(DataFrame)).data) == 1
        await peer.close()


@run
async def test_what_is_answered_at_once_stands_behind_the_headers() -> None:
    async with serving() as it:
        message = filter_pb2.CheckBatch(config_hash="other")
        message.calls.add(id=1, timeout_micros=60_000_000)
        peer = await it.connect(PREFACE, SettingsFrame(0), opening(), data(grpc_message(message.SerializeToString())))
        assert (await peer.headers())[":status"] == "200"
        assert (await peer.answers(1))[1].error.code == 9
        await peer.close()


@run
async def test_what_is_taken_is_given_back() -> None:
    async with serving() as it:
        for message, open in (
            (grpc_message(a_batch((1, "/" + "x" * 3_000_000))), opening()),
            # To a stream that is answered already, and reads nothing.
            (b"x" * 3_000_000, opening(path="/x")),
        ):
            peer = await it.connect(PREFACE, SettingsFrame(0), open)
            await peer.headers()
            sent, windows = 0, {0: 0, 1: 0}
            for at in range(0, len(message), 10_000):
                part = DataFrame(1, message[at : at + 10_000], pad_length=255, flags=["PADDED"])
                peer.send(part)
                sent += part.flow_controlled_length
            peer.send(PingFrame(0, b"8 octets"))
            while not isinstance(frame := await peer.frame(), PingFrame):
                if isinstance(frame, WindowUpdateFrame):
                    windows[frame.stream_id] += frame.window_increment
            # But for less than half of a window.
            assert 0 <= sent - windows[0] < 2 * 1024 * 1024
            if message[0] == 0:
                assert 0 <= sent - windows[1] < 512 * 1024
            await peer.close()


@run
async def test_data_behind_the_end_of_a_stream_ends_it() -> None:
    async with serving() as it:
        peer = await it.connect(PREFACE, SettingsFrame(0), opening(), batch((1, "/wait"), end=True), batch((2, "/no")))
        assert (await peer.until(RstStreamFrame)).error_code == 5
        peer.send(opening(3), batch((2, "/no"), stream=3))
        assert set(await peer.answers(1, stream=3)) == {2}
        [connection] = it.streams.connections
        assert list(connection._streams) == [3]
        await peer.close()


@run
async def test_data_of_a_stream_that_the_peer_has_reset_harms_no_other() -> None:
    async with serving() as it:
        peer = await it.connect(PREFACE, SettingsFrame(0), opening(), opening(3), RstStreamFrame(1), batch((1, "/no")))
        peer.send(batch((2, "/no"), stream=3))
        assert (await peer.answers(1, stream=3))[2].request.deny.status == 403
        await peer.close()


BREACHES: dict[str, tuple[list[Frame | bytes], int]] = {
    "no preface": ([b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"], 1),
    "a frame too large": ([opening(), data(b"x" * (128 * 1024 + 1))], 6),
    "the head of a frame too large": ([opening(), b"\x02\x00\x01\x00\x00\x00\x00\x00\x01"], 6),
    "data of no stream": ([b"\x00\x00\x00\x00\x00\x00\x00\x00\x00"], 1),
    "data of a stream that is not open": ([data(b"x", 5)], 1),
    "data between headers": ([opening(), HeadersFrame(3, b""), data(b"")], 1),
    "a window between headers": ([opening(), HeadersFrame(3, b""), WindowUpdateFrame(1, window_increment=1)], 1),
    "a stream of the server's": ([opening(2)], 1),
    "an older stream": ([opening(3), opening(1)], 1),
    "headers that are none": ([HeadersFrame(1, b"\xff" * 30, flags=["END_HEADERS"])], 1),
    "headers without a path": ([HeadersFrame(1, b"\x83\x86", flags=["END_HEADERS"])], 1),
    "upper case": ([opening(X_Y="1")], 1),
    "headers too large": ([opening(x="x" * 17_000)], 11),
    "headers between headers": ([HeadersFrame(1, b""), opening(3)], 1),
    "headers that never end": ([HeadersFrame(1, b""), *[ContinuationFrame(1, b"")] * 200], 1),
    "a window of nothing": ([b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00"], 1),
    "a window too large": ([WindowUpdateFrame(0, window_increment=(1 << 31) - 1)], 3),
    "a stream's window of nothing": ([opening(), b"\0\0\4\x08\0\0\0\0\1\0\0\0\0"], 1),
    "a stream's window too large": ([opening(), WindowUpdateFrame(1, window_increment=(1 << 31) - 1)], 3),
    "a window of an odd length": ([opening(), b"\0\0\3\x08\0\0\0\0\1\0\0\1"], 6),
    "settings that make a window too large": (
        [
            opening(),
            WindowUpdateFrame(1, window_increment=(1 << 31) - 1 - 65_535),
            SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65_536}),
        ],
        3,
    ),
    "padding and nothing else": ([opening(), b"\0\0\0\0\x08\0\0\0\1"], 1),
    "settings of an odd length": ([b"\x00\x00\x05\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"], 6),
    "settings of a stream": ([b"\x00\x00\x00\x04\x00\x00\x00\x00\x01"], 1),
    "a frame size out of bounds": ([SettingsFrame(0, settings={SettingsFrame.MAX_FRAME_SIZE: 1})], 1),
    "an initial window too large": ([SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 31})], 3),
    "a ping of seven": ([b"\x00\x00\x07\x06\x00\x00\x00\x00\x00seven.."], 6),
    "a push": ([opening(), PushPromiseFrame(1, 2, opening().data, flags=["END_HEADERS"])], 1),
    "more padding than frame": ([opening(), b"\x00\x00\x01\x00\x08\x00\x00\x00\x01\xff"], 1),
    "too many streams": ([opening(stream) for stream in range(1, 19, 2)], 1),
    "many resets": ([frame for stream in range(1, 251, 2) for frame in (opening(stream), RstStreamFrame(stream))], 11),
}


@pytest.mark.parametrize("what", BREACHES)
def test_what_breaks_http2_ends_the_connection(what: str) -> None:
    async def test() -> None:
        async with serving() as it:
            frames, code = BREACHES[what]
            head: list[Frame | bytes] = [] if what == "no preface" else [PREFACE, SettingsFrame(0)]
            peer = await it.connect(*head, *frames)
            ends = [frame for frame in await peer.closed() if isinstance(frame, GoAwayFrame)]
            assert [frame.error_code for frame in ends] == [code]
            await peer.close()
            await it.still_serves()

    run(test)()


@run
async def test_calls_for_something_else_come_to_an_end() -> None:
    async with serving() as it:
        peer = await it.connect(PREFACE, SettingsFrame(0))
        for stream in range(1, 2 * _stream._MAX_RESETS, 2):
            peer.send(opening(stream, path="/x", end=True))
            assert (await peer.headers(stream))["grpc-status"] == "12"
        peer.send(opening(251, path="/x", end=True))
        assert (await peer.until(GoAwayFrame)).error_code == 11


@run
async def test_any_bytes_harm_nobody_else() -> None:
    async with serving() as it:
        good = b"".join(
            frame if isinstance(frame, bytes) else frame.serialize()
            for frame in (
                PREFACE, SettingsFrame(0), ACK, opening(), batch((1, "/no"), (2, "/wait")), PingFrame(0, b"8 octets"),
                WindowUpdateFrame(0, window_increment=9), opening(3), batch((1, "/"), stream=3, end=True),
                RstStreamFrame(1), opening(5), data(b"\0\0", 5), GoAwayFrame(0),
            )
        )
        for seed in range(400):
            chance = random.Random(seed)
            sent = bytearray(good) if seed % 8 else bytearray(PREFACE + chance.randbytes(200))
            for _ in range(chance.randrange(1, 6)):
                at = chance.randrange(len(PREFACE) if seed % 3 else 0, len(sent))
                change = chance.randrange(3)
                if change == 0:
                    sent[at] = chance.randrange(256)
                elif change == 1:
                    del sent[at : at + chance.randrange(1, 10)]
                else:
                    sent[at:at] = chance.randbytes(chance.randrange(1, 10))
            peer = await it.connect(bytes(sent))
            peer.send_end()
            await peer.closed()
            await peer.close()
        await it.still_serves()


# Bounds.


@run
async def test_a_peer_that_does_not_read_is_not_read_from() -> None:
    async with serving() as it:
        windows = SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 30})
        wide = WindowUpdateFrame(0, window_increment=1 << 30)
        peer = await it.connect(PREFACE, windows, wide, opening())
        # Far more than both sockets' buffers take.
        path = "/no" + "x" * 10_000
        for turn in range(1, 3001):
            peer.send(batch((turn, path)))
        await eventually(lambda: len(it.streams.connections) == 1)
        [connection] = it.streams.connections
        await eventually(lambda: not connection.can_write)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert connection._transport.get_write_buffer_size() < 1 << 20
        assert peer._writer.transport.get_write_buffer_size() > 1 << 20
        assert len(await peer.answers(3000)) == 3000
        await peer.close()


@run
async def test_who_does_not_speak_http2_has_to_go() -> None:
    patience, _stream._PATIENCE = _stream._PATIENCE, 0.05
    try:
        async with serving() as it:
            for silent in (await it.connect(), await it.connect(PREFACE)):
                assert isinstance((await silent.closed())[-1], GoAwayFrame)
            peer = await it.connect(PREFACE, SettingsFrame(0))
            await asyncio.sleep(0.1)
            peer.send(opening(), batch((1, "/")))
            assert set(await peer.answers(1)) == {1}
    finally:
        _stream._PATIENCE = patience


@run
async def test_there_are_so_many_connections_and_no_more() -> None:
    async with serving() as it:
        peers = [await it.connect(PREFACE, SettingsFrame(0)) for _ in range(_stream._MAX_CONNECTIONS)]
        for peer in peers:
            await peer.until(SettingsFrame)
        assert await (await it.connect(PREFACE)).closed() == []
        await peers.pop().close()
        await eventually(lambda: len(it.streams.connections) < _stream._MAX_CONNECTIONS)
        await it.still_serves()
        for peer in peers:
            await peer.close()


# Ends.


@run
async def test_a_stop_waits_for_what_is_open_and_takes_nothing_new() -> None:
    async with serving() as it:
        idle = await it.connect(PREFACE, SettingsFrame(0))
        peer = await it.connect(PREFACE, SettingsFrame(0), opening(), batch((1, "/"), (2, "/wait")))
        await peer.headers()
        assert set(await peer.answers(1)) == {1}
        stopping = asyncio.create_task(it.server.stop(DEADLINE))
        assert isinstance((await idle.closed())[-1], GoAwayFrame)
        assert not it.socket.exists()
        peer.send(batch((3, "/")), opening(3))
        assert (await peer.until(RstStreamFrame)).stream_id == 3
        it.go.set()
        assert set(await peer.answers(1)) == {2}
        trailers = await peer.headers()
        assert (trailers["grpc-status"], trailers["end"]) == ("0", "True")
        reset, goaway = await peer.closed()
        assert isinstance(reset, RstStreamFrame) and reset.error_code == 0
        assert isinstance(goaway, GoAwayFrame) and goaway.error_code == 0
        await stopping


@run
async def test_a_connection_that_comes_with_the_stop_is_not_kept() -> None:
    class Transport(asyncio.Transport):
        aborted = False

        def abort(self) -> None:
            self.aborted = True

    async with serving() as it:
        await it.streams.stop(0)
        # It has been accepted, and the loop says so only now.
        transport = Transport()
        _stream._Connection(it.streams).connection_made(transport)
        assert transport.aborted
        assert not it.streams.connections


@run
async def test_a_stop_has_an_end() -> None:
    async with serving() as it:
        peer = await it.connect(PREFACE, SettingsFrame(0), opening(), batch((1, "/"), (2, "/wait")))
        await peer.answers(1)
        await it.server.stop(0.05)
        await peer.closed()


@run
async def test_nothing_is_left_of_a_connection() -> None:
    async with serving() as it:
        await it.still_serves()
        tasks = len(asyncio.all_tasks())
        for turn in range(100):
            peer = await it.connect(PREFACE, SettingsFrame(0), opening(), batch((1, "/"), (2, "/wait")))
            await peer.answers(1)
            if turn % 2:
                peer.send(RstStreamFrame(1), GoAwayFrame(0))
            await peer.close()
        await eventually(lambda: not it.streams.connections and len(asyncio.all_tasks()) == tasks)
        del peer
        kinds = (_stream._Connection, _stream._Stream, _batches.Batches)
        await eventually(lambda: gc.collect() >= 0 and not any(isinstance(each, kinds) for each in gc.get_objects()))


async def eventually(what: Callable[[], bool]) -> None:
    while not what():
        await asyncio.sleep(0.001)
