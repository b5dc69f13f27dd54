"""Test a plugin without the proxy.

    with PluginTester(plugin, config={"allow": ["admin"]}) as tester:
        assert tester.check("/", headers={"x-user": "admin"}).allowed

The plugin serves on a real socket, in this process, and is asked with the messages that the proxy sends. So a verdict
here is what the proxy would get, and what makes a call fail here makes it fail there.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
from collections.abc import Collection, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import grpc

from . import _host_wire
from ._certificates import Certificate
from ._errors import ConfigError
from ._headers import HeaderInput, Headers, decode_value
from ._plugin import Plugin
from ._request import Address, Request, Route, TlsInfo
from ._server import MAX_MESSAGE, Server
from ._verdicts import Allow, Keep, Mutation, Reply

__all__ = ["CallFailed", "PluginTester", "RequestOutcome", "ResponseOutcome"]

_T = TypeVar("_T")

_PEER = Address("127.0.0.1", 50000)
_LOCAL = Address("127.0.0.1", 8080)
_ROUTE = Route("test")


class CallFailed(Exception):
    """A call to the plugin failed: its function raised, or returned no verdict. The log has the traceback.

    The proxy would do what the filter's ``on_failure`` says.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        """Name of the gRPC status, such as ``"INTERNAL"``."""
        self.message = message


class _Outcome:
    """What both kinds of filters can come to: an own reply, or changes to headers."""

    def __init__(self, reply: Reply | None, mutations: tuple[Mutation, ...]) -> None:
        self.status = reply.status if reply else None
        """Status of the plugin's own reply; None without one."""
        self.headers = Headers(reply.headers if reply else ())
        """Headers of the plugin's own reply."""
        self.body = reply.body if reply else b""
        """Body of the plugin's own reply."""
        self.headers_set = _named(mutations, "set")
        self.headers_added = _pairs(mutations, "append")
        self.headers_removed = [mutation.name for mutation in mutations if mutation.kind == "remove"]

    @property
    def text(self) -> str:
        """The body as UTF-8 text."""
        return self.body.decode()

    def json(self) -> Any:
        """Parses the body as JSON."""
        return json.loads(self.body)


class RequestOutcome(_Outcome):
    """What a request filter decided, in the proxy's eyes.

    ``headers_set``, ``headers_added`` and ``headers_removed`` are the changes to the request.
    """

    def __init__(self, verdict: object) -> None:
        allowed = verdict if isinstance(verdict, Allow) else None
        super().__init__(getattr(verdict, "reply", None), allowed.request_headers if allowed else ())
        self.allowed = allowed is not None
        later = allowed.response_headers if allowed else ()
        self.response_headers_set = _named(later, "set")
        self.response_headers_added = _pairs(later, "append")
        self.response_headers_removed = [mutation.name for mutation in later if mutation.kind == "remove"]

    def __repr__(self) -> str:
        return "<allowed>" if self.allowed else f"<denied: {self.status} {self.body[:80]!r}>"


class ResponseOutcome(_Outcome):
    """What a response filter decided, in the proxy's eyes.

    ``headers_set``, ``headers_added`` and ``headers_removed`` are the changes to the response.
    """

    def __init__(self, verdict: object) -> None:
        kept = verdict if isinstance(verdict, Keep) else None
        super().__init__(getattr(verdict, "reply", None), kept.headers if kept else ())
        self.replaced = kept is None

    def __repr__(self) -> str:
        return f"<replaced: {self.status} {self.body[:80]!r}>" if self.replaced else "<kept>"


class PluginTester:
    """Runs a plugin as long as the ``with`` block, and asks it as the proxy would.

    Args:
        plugin: the plugin. Several testers may run it at a time, with a configuration each.
        config: what would stand under ``config:``; only what YAML and JSON can say.
        timeout: seconds that a call may take.

    Raises:
        ConfigError: from the ``with`` statement and from `configure`, when the plugin refuses the configuration. Of
            several problems, the first.
    """

    def __init__(self, plugin: Plugin, config: Mapping[str, Any] | None = None, *, timeout: float = 10.0) -> None:
        self._plugin = plugin
        self._config = dict(config or {})
        self._timeout = timeout
        self._generation = 0
        self._resources = ExitStack()

    def __enter__(self) -> PluginTester:
        with ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="palisade-"))
            address = f"unix:{quote(directory)}/plugin.sock"
            loop = stack.enter_context(_loop_thread.use())
            server = loop.run(self._start(address))
            stack.callback(lambda: loop.run(server.stop(0)))
            stack.enter_context(self._plugin._serving(server))
            options = [("grpc.max_receive_message_length", MAX_MESSAGE)]
            self._channel = stack.enter_context(grpc.insecure_channel(address, options))
            self._needs = _host_wire.decode_describe(self._call("Lifecycle/Describe", b""))
            self.configure(self._config)
            self._resources = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._resources.close()

    async def _start(self, address: str) -> Server:
        server = Server(self._plugin._registrations, on_shutdown=lambda: None)
        await server.start(address)
        return server

    def configure(self, config: Mapping[str, Any]) -> None:
        """Hands over another configuration. If it is refused, raises ConfigError, and the last one stays."""
        generation = self._generation + 1
        answer = self._call("Lifecycle/Configure", _host_wire.encode_configure(dict(config), str(generation)))
        for problem in _host_wire.decode_configure(answer):
            raise problem
        self._generation = generation

    def check(
        self,
        path: str = "/",
        *,
        method: str = "GET",
        scheme: str | None = None,
        authority: str = "localhost",
        headers: HeaderInput = (),
        body: bytes = b"",
        protocol: str = "HTTP/1.1",
        peer: Address = _PEER,
        local: Address = _LOCAL,
        tls: TlsInfo | None = None,
        listener: str = "test",
        route: Route | None = _ROUTE,
        id: str = "test-request",
        traceparent: str = "",
        tracestate: str = "",
    ) -> RequestOutcome:
        """Asks the request filter. A query may follow the path; the other arguments are those of `palisade.Request`.

        As with the proxy, the filter sees the body and the client's certificates only if it asked for them.

        Raises:
            CallFailed: the filter raised, or returned no verdict.
            ValueError: the body is larger than the filter's ``max_body``; the proxy would answer 413 by itself.
        """
        if self._needs.max_body and len(body) > self._needs.max_body:
            raise ValueError(f"the body has {len(body)} bytes, and the filter takes {self._needs.max_body}")
        if tls is not None and not self._needs.peer_certificates:
            tls = TlsInfo(tls.server_name, tls.alpn, tls.version)
        path, question_mark, query = path.partition("?")
        request = Request(
            method=method,
            scheme=scheme or ("https" if tls else "http"),
            authority=authority,
            path=path,
            query=query,
            has_query=bool(question_mark),
            protocol=protocol,
            headers=Headers(headers),
            peer=peer,
            local=local,
            tls=tls,
            listener=listener,
            route=route,
            id=id,
            traceparent=traceparent,
            tracestate=tracestate,
        )
        message = _host_wire.encode_check_request(request, body if self._needs.body else None, str(self._generation))
        return RequestOutcome(_host_wire.decode_check_request(self._call("Filter/CheckRequest", message)))

    def check_response(
        self,
        status: int = 200,
        *,
        headers: HeaderInput = (),
        path: str = "/",
        method: str = "GET",
        authority: str = "localhost",
    ) -> ResponseOutcome:
        """Asks the response filter about the head of a response, to a request with this path and method.

        Raises:
            CallFailed: the filter raised, or returned no verdict.
        """
        path, question_mark, query = path.partition("?")
        request = Request(
            method=method,
            scheme="http",
            authority=authority,
            path=path,
            query=query,
            has_query=bool(question_mark),
            protocol="HTTP/1.1",
            headers=Headers(),
            peer=_PEER,
            local=_LOCAL,
            tls=None,
            listener="test",
            route=_ROUTE,
            id="test-request",
            traceparent="",
            tracestate="",
        )
        message = _host_wire.encode_check_response(request, status, Headers(headers).raw, str(self._generation))
        return ResponseOutcome(_host_wire.decode_check_response(self._call("Filter/CheckResponse", message)))

    def certificates(self, names: Collection[str] = ()) -> list[Certificate]:
        """Returns the certificates in force, those named or all; waits for the first good load.

        Raises:
            CallFailed: there was none within the timeout. The log says why loads fail.
        """
        with self.watch_certificates(names) as changes:
            return next(changes)

    @contextmanager
    def watch_certificates(self, names: Collection[str] = ()) -> Iterator[Iterator[list[Certificate]]]:
        """Watches certificates as the proxy does: the iterator gives those in force, then waits for each change.

        Raises:
            CallFailed: from the iterator, when the timeout is over, counted from the ``with`` statement.
        """
        method: Any = self._channel.unary_stream("/palisade.plugin.v1.Certificates/Watch")
        call = method(_host_wire.encode_watch(names, str(self._generation)), timeout=self._timeout)
        try:
            yield _certificates_of(call)
        finally:
            call.cancel()

    def _call(self, method: str, message: bytes) -> bytes:
        call: Any = self._channel.unary_unary(f"/palisade.plugin.v1.{method}")
        try:
            answer: bytes = call(message, timeout=self._timeout)
        except grpc.RpcError as error:
            raise _failure(error) from None
        return answer


def _certificates_of(call: Any) -> Iterator[list[Certificate]]:
    try:
        for message in call:
            yield _host_wire.decode_watch(message)
    except grpc.RpcError as error:
        raise _failure(error) from None


def _failure(error: Any) -> CallFailed:
    return CallFailed(error.code().name, error.details() or "")


def _named(mutations: tuple[Mutation, ...], kind: str) -> dict[str, str]:
    return dict(_pairs(mutations, kind))


def _pairs(mutations: tuple[Mutation, ...], kind: str) -> list[tuple[str, str]]:
    return [(mutation.name, decode_value(mutation.value)) for mutation in mutations if mutation.kind == kind]


class _LoopThread:
    """One event loop on a thread of its own, for all testers that run at a time: grpcio wants to be used from one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0

    @contextmanager
    def use(self) -> Iterator[_LoopThread]:
        with self._lock:
            if self._users == 0:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="plugin-tester")
                self._thread.start()
            self._users += 1
        try:
            yield self
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._loop.call_soon_threadsafe(self._loop.stop)
                    self._thread.join()
                    self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


_loop_thread = _LoopThread()
