"""The services of a plugin on one asyncio event loop.

One server for both kinds of handlers: coroutines run on the loop, other functions on a pool of threads, so that one
that blocks holds up neither health checks nor certificate streams. (grpcio's own threaded server would hold a thread
for each open stream and each call that awaits.)
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio

from . import _wire
from ._batches import Batches, Outlet, serve
from ._certificates import CertificateRequest, CertificateStore
from ._errors import CallError, ConfigError
from ._judgement import Handler, Judgement, failure, text_of
from ._threads import Threads
from ._wire import Config, Configured

if TYPE_CHECKING:
    from ._stream import StreamServer

logger = logging.getLogger("palisade")

MAX_MESSAGE = 16 * 1024 * 1024
GRACE = 5.0
"""Seconds that calls in flight have to finish once the plugin is told to stop."""

_OPTIONS = (
    # A second process on the same port would get half of this one's calls.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # The host knows what is too large for it, and that it may be a denial. Of an error in its place it does not.
    ("grpc.max_send_message_length", -1),
)
_HEALTH_SERVICES = ("", "plugin")

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class Registrations:
    """What the user's program told the plugin object."""

    name: str
    version: str
    workers: int
    check: Handler | None = None
    respond: Handler | None = None
    load: Handler | None = None
    configure: Handler | None = None
    refresh: float | None = None
    body: bool = False
    max_body: int = 0
    peer_certificates: bool = False

    def describe(self, stream_socket: str = "") -> _wire.Description:
        on_threads = any(handler and not handler.is_async for handler in (self.check, self.respond))
        return _wire.Description(
            name=self.name,
            version=self.version,
            filter=self.check is not None or self.respond is not None,
            certificates=self.load is not None,
            response_phase=self.respond is not None,
            body=self.body,
            max_body=self.max_body,
            peer_certificates=self.peer_certificates,
            # More calls than threads would wait here, unseen; the host queues better.
            max_concurrent_calls=self.workers if on_threads else 0,
            stream_socket=stream_socket,
        )


class Server:
    """Serves one plugin. Made, started and stopped on the event loop that it serves on."""

    def __init__(self, registrations: Registrations, on_shutdown: Callable[[], None]) -> None:
        self._registrations = registrations
        self._on_shutdown = on_shutdown
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(registrations.workers, thread_name_prefix="handler")
        self._judgement = Judgement(registrations.check, registrations.respond, self._pool, self._configured)
        self._threads = Threads(self._pool)
        # The loader waits for files and networks, and must not wait for a free worker too.
        self._loader_pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._in_force: Configured | None = None
        self._configuring = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._store: CertificateStore | None = None
        self._loading: asyncio.Task[None] | None = None
        if registrations.load is not None:
            self._store = CertificateStore(self._load_certificates, registrations.refresh)
        self._streams: StreamServer | None = None
        self._stream_socket = ""
        self._grpc = grpc.aio.server(options=_OPTIONS)
        self._grpc.add_generic_rpc_handlers(self._services())

    async def start(self, address: str) -> int:
        """Serves on ``address``, as gRPC writes it; returns the port of a TCP one."""
        port = self._grpc.add_insecure_port(address)
        await self._grpc.start()
        if self._store is not None:
            self._loading = asyncio.create_task(self._store.run())
        return port

    async def start_streams(self, socket: Path) -> None:
        """Serves batches there too, and says so from now on. Does nothing for a plugin that has none.

        Raises OSError when it can't listen.
        """
        # Only now: whoever tests, or listens on TCP, has no use for all that h2 brings.
        from ._stream import StreamServer

        if self._registrations.describe().filter:
            self._streams = StreamServer(self._batches)
            await self._streams.start(socket)
            self._stream_socket = socket.name

    async def stop(self, grace: float) -> None:
        """Takes no more calls, ends the streams, and gives other calls ``grace`` seconds to finish."""
        self._stopping.set()
        if self._store is not None:
            await self._store.close()
        ends = [self._grpc.stop(grace)]
        if self._streams is not None:
            ends.append(self._streams.stop(grace))
        await asyncio.gather(*ends)
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._loader_pool.shutdown(wait=False, cancel_futures=True)

    def reload_certificates(self) -> None:
        """May be called on any thread."""
        store = self._store
        if store is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(store.load_soon, "reload")

    def _services(self) -> list[grpc.GenericRpcHandler]:
        services = [
            _service(
                "palisade.plugin.v1.Lifecycle",
                Describe=_unary(self._describe, _wire.decode_describe),
                Configure=_unary(self._configure, _wire.decode_configure),
            ),
            _service("plugin.GRPCController", Shutdown=_unary(self._shutdown, bytes)),
            _service(
                "grpc.health.v1.Health",
                Check=_unary(self._check_health, _wire.decode_health),
                Watch=_stream(self._watch_health, _wire.decode_health),
            ),
        ]
        if self._registrations.describe().filter:
            services.append(
                _service(
                    "palisade.plugin.v1.Filter",
                    CheckRequest=_unary(self._check_request, _wire.decode_check_request),
                    CheckResponse=_unary(self._check_response, _wire.decode_check_response),
                    CheckBatches=grpc.stream_stream_rpc_method_handler(self._check_batches),
                )
            )
        if self._store is not None:
            services.append(
                _service(
                    "palisade.plugin.v1.Certificates",
                    Watch=_stream(self._watch_certificates, _wire.decode_watch),
                )
            )
        return services

    # palisade.plugin.v1.Lifecycle

    async def _describe(self, host: str, context: Context) -> bytes:
        logger.debug("described to %s", host)
        return _wire.encode_describe(self._registrations.describe(self._stream_socket))

    async def _configure(self, call: Configured, context: Context) -> bytes:
        async with self._configuring:
            problems = await self._validate(call.config, context)
            if not problems:
                first = self._in_force is None
                self._in_force = call
                if self._store is not None:
                    self._store.load_soon("start" if first else "configure")
            hash = "" if self._in_force is None else self._in_force.hash
        return _wire.encode_configure(problems, hash)

    async def _validate(self, config: Config, context: Context) -> list[ConfigError]:
        handler = self._registrations.configure
        if handler is None:
            return []
        problems: list[ConfigError] = []
        try:
            # A generator runs when it is read, so it is read where the function runs.
            found = await Handler(handler.role, _collecting(handler.function)).call(self._pool, config)
            problems.extend(found)
        except ConfigError as problem:
            problems.append(problem)
        except Exception as error:
            await _refuse(context, failure(f"{handler} raised {text_of(error)}", error))
        return problems

    # palisade.plugin.v1.Filter

    async def _check_request(self, call: _wire.CheckRequestCall, context: Context) -> bytes:
        try:
            configured = self._configured(call.config_hash)
            if call.request is None:
                raise _wire.no_request()
            verdict = await self._judgement.judge_request(call.request, configured.config)
            return _wire.encode_check_request(verdict, configured.hash)
        except CallError as error:
            await _refuse(context, error)

    async def _check_response(self, call: _wire.CheckResponseCall, context: Context) -> bytes:
        try:
            configured = self._configured(call.config_hash)
            verdict = await self._judgement.judge_response(call.response, configured.config)
            return _wire.encode_check_response(verdict, configured.hash)
        except CallError as error:
            await _refuse(context, error)

    async def _check_batches(self, requests: object, context: Context) -> None:
        await serve(self._batches, context, self._stopping)

    def _batches(self, outlet: Outlet) -> Batches:
        return Batches(self._judgement, self._threads, self._registrations.workers, outlet)

    def _configured(self, hash: str) -> Configured:
        """The configuration in force, if it is the one that the caller means."""
        configured = self._in_force
        if configured is None:
            raise CallError("FAILED_PRECONDITION", "the plugin is not configured yet")
        if hash and hash != configured.hash:
            raise CallError(
                "FAILED_PRECONDITION",
                f"the configuration in force is {configured.hash}, and the call is for {hash}",
            )
        return configured

    # palisade.plugin.v1.Certificates

    async def _load_certificates(self, request: CertificateRequest) -> object:
        assert self._registrations.load is not None and self._in_force is not None
        return await self._registrations.load.call(self._loader_pool, request, self._in_force.config)

    async def _watch_certificates(self, call: _wire.WatchCall, context: Context) -> AsyncIterator[bytes]:
        assert self._store is not None
        try:
            self._configured(call.config_hash)
        except CallError as error:
            await _refuse(context, error)
        sent = None
        while (bundles := await self._store.next(sent, call.names)) is not None:
            sent = bundles
            yield _wire.encode_watch(bundles.values())

    # plugin.GRPCController

    async def _shutdown(self, request: bytes, context: Context) -> bytes:
        self._on_shutdown()
        return b""

    # grpc.health.v1.Health. The package's own servicer would keep a Watch open while the server stops, and a graceful
    # stop would always take the whole of its grace.

    async def _check_health(self, service: str, context: Context) -> bytes:
        if service not in _HEALTH_SERVICES:
            await _refuse(context, CallError("NOT_FOUND", f"no service {service!r}"))
        return _wire.encode_health(serving=not self._stopping.is_set())

    async def _watch_health(self, service: str, context: Context) -> AsyncIterator[bytes]:
        known = service in _HEALTH_SERVICES
        yield _wire.encode_health(serving=not self._stopping.is_set()) if known else _wire.UNKNOWN_HEALTH
        await self._stopping.wait()
        if known:
            yield _wire.encode_health(serving=False)


def _collecting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a validation function so that it returns a list of ConfigError, whether it raises, returns or yields."""

    def collect(config: Config) -> list[ConfigError] | Coroutine[Any, Any, list[ConfigError]]:
        result = function(config)
        return collect_later(result) if inspect.isawaitable(result) else problems_in(result)

    async def collect_later(result: Awaitable[Any]) -> list[ConfigError]:
        return problems_in(await result)

    def problems_in(result: Any) -> list[ConfigError]:
        problems: list[ConfigError] = []
        try:
            for problem in () if result is None else result:
                if not isinstance(problem, ConfigError):
                    raise TypeError(f"validation gives ConfigError, not {type(problem).__name__}")
                problems.append(problem)
        except ConfigError as last:
            problems.append(last)
        return problems

    return collect


def _service(name: str, **methods: grpc.RpcMethodHandler[Any, Any]) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(name, methods)


def _unary(method: Callable[..., Any], decode: Callable[[bytes], Any]) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(method, request_deserializer=decode)


def _stream(method: Callable[..., Any], decode: Callable[[bytes], Any]) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_stream_rpc_method_handler(method, request_deserializer=decode)


async def _refuse(context: Context, error: CallError) -> NoReturn:
    await context.abort(grpc.StatusCode[error.code], error.message)
    raise AssertionError("abort() raises")
