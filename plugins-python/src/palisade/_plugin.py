"""The object that a plugin's program is written around."""

from __future__ import annotations

import math
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, overload

from . import _process
from ._certificates import Certificate, CertificateRequest
from ._errors import ConfigError
from ._judgement import Handler
from ._request import Request, Response
from ._server import Registrations, Server
from ._verdicts import ResponseVerdict, Verdict
from ._wire import Config

RequestFilter = Callable[[Request, Config], Verdict | Awaitable[Verdict]]
ResponseFilter = Callable[[Response, Config], ResponseVerdict | Awaitable[ResponseVerdict]]
Loaded = Certificate | Sequence[Certificate]
CertificateLoader = Callable[[CertificateRequest, Config], Loaded | Awaitable[Loaded]]
Problems = Iterable[ConfigError] | None
ConfigValidator = Callable[[Config], Problems | Awaitable[Problems]]

RequestFilterT = TypeVar("RequestFilterT", bound=RequestFilter)
ResponseFilterT = TypeVar("ResponseFilterT", bound=ResponseFilter)
CertificateLoaderT = TypeVar("CertificateLoaderT", bound=CertificateLoader)
ConfigValidatorT = TypeVar("ConfigValidatorT", bound=ConfigValidator)


class Plugin:
    """A plugin: its functions are registered with decorators, then `serve` serves them.

    Every function may be ``def`` or ``async def``. A coroutine runs on the plugin's one event loop, where it must not
    block. Any other function runs on one of ``workers`` threads; several run at the same time.

    In a process that palisade started, making the plugin claims stdout for the handshake: what the program prints
    from then on goes to stderr, which is the plugin's log.

    Args:
        name: the plugin's own name. The proxy's configuration may call it otherwise.
        version: the plugin's own version, free text.
        workers: threads for functions that are not coroutines. The proxy is told, and holds back further calls.
    """

    def __init__(self, name: str, *, version: str = "", workers: int = 32) -> None:
        if not name:
            raise ValueError("a plugin has a name")
        if workers < 1:
            raise ValueError("a plugin needs at least one worker")
        self._registrations = Registrations(name, version, workers)
        self._servers: set[Server] = set()
        self._servers_lock = threading.Lock()
        _process.claim_stdout()

    @property
    def name(self) -> str:
        return self._registrations.name

    @overload
    def filter(self, function: RequestFilterT, /) -> RequestFilterT: ...
    @overload
    def filter(
        self, *, body: bool = False, max_body: int = 0, peer_certificates: bool = False
    ) -> Callable[[RequestFilterT], RequestFilterT]: ...
    def filter(
        self,
        function: Any = None,
        *,
        body: bool = False,
        max_body: int = 0,
        peer_certificates: bool = False,
    ) -> Any:
        """Registers the function that judges requests: ``(request, config)`` -> `allow` or `deny`.

        If it raises, or returns anything else, the call fails and the proxy does what ``on_failure`` says. It is
        never taken for an allow.

        Args:
            body: whether the function needs the request's body, which the proxy then collects before it asks.
            max_body: the largest body to judge, in bytes; a request with a larger one is answered 413 by the proxy.
                0: the proxy's own limit.
            peer_certificates: whether the function needs the client's certificate chain.
        """
        if max_body < 0 or (max_body and not body):
            raise ValueError("max_body is a number of bytes, and goes with body=True")

        def register(function: RequestFilter) -> RequestFilter:
            self._refuse_second(self._registrations.check)
            self._registrations.check = Handler.of("filter", function, "request", "config")
            self._registrations.body = body
            self._registrations.max_body = max_body
            self._registrations.peer_certificates = peer_certificates
            return function

        return register if function is None else register(function)

    def response(self, function: ResponseFilterT, /) -> ResponseFilterT:
        """Registers the function that judges responses: ``(response, config)`` -> `keep` or `replace`.

        It is called for every response that passes the filter, also those that the proxy made itself. Failures are
        treated as in `filter`.
        """
        self._refuse_second(self._registrations.respond)
        self._registrations.respond = Handler.of("response filter", function, "response", "config")
        return function

    @overload
    def certificates(self, function: CertificateLoaderT, /) -> CertificateLoaderT: ...
    @overload
    def certificates(self, *, refresh: float | None = 1.0) -> Callable[[CertificateLoaderT], CertificateLoaderT]: ...
    def certificates(
        self, function: Any = None, *, refresh: float | None = 1.0
    ) -> Any:
        """Registers the function that loads certificates: ``(request, config)`` -> a `Certificate` or a list of them.

        It is called when the configuration comes, and again every ``refresh`` seconds, never twice at a time. The
        proxy gets a message only when something changed. A load that raises, returns nothing, or returns a key that
        is not the certificate's is logged, and what was loaded before stays.

        Args:
            refresh: seconds between two loads; None to load only when `reload_certificates` is called.
        """
        if refresh is not None and not (refresh > 0 and math.isfinite(refresh)):
            raise ValueError("refresh is a number of seconds above 0, or None")

        def register(function: CertificateLoader) -> CertificateLoader:
            self._refuse_second(self._registrations.load)
            self._registrations.load = Handler.of("certificate loader", function, "request", "config")
            self._registrations.refresh = refresh
            return function

        return register if function is None else register(function)

    def configure(self, function: ConfigValidatorT, /) -> ConfigValidatorT:
        """Registers the function that validates ``config:`` before it comes into force: ``(config)``.

        It refuses by raising `ConfigError`, or by yielding (or returning a list of) several. A plugin that runs
        keeps the configuration that it had.
        """
        self._refuse_second(self._registrations.configure)
        self._registrations.configure = Handler.of("configuration check", function, "config")
        return function

    def reload_certificates(self) -> None:
        """Loads certificates now, for example because a watched file changed. Any thread may call it.

        Returns at once. Does nothing while the plugin does not serve: serving begins with a load.
        """
        if self._registrations.load is None:
            raise RuntimeError("the plugin has no certificate loader: register one with @plugin.certificates")
        with self._servers_lock:
            for server in self._servers:
                server.reload_certificates()

    def serve(self, address: str | None = None) -> None:
        """Serves until palisade stops the plugin, or dies.

        On SIGTERM, and when asked to shut down, calls in flight get 5 seconds to finish; then it returns. Exits with
        an explanation when palisade did not start this process, and logs to stderr as JSON unless `logging` has
        been set up. Must be called on the main thread.

        Args:
            address: where to listen, `unix:/path` or `tcp:IP:PORT`, for a plugin that palisade finds by its
                `address:`, or tells where to listen by `{socket}` or `{port}` in its `command:`. Anybody may start
                such a process; SIGINT ends it like SIGTERM where palisade has not started it.
        """
        registrations = self._registrations
        if not (registrations.check or registrations.respond or registrations.load):
            raise RuntimeError("the plugin has no function: register one with @plugin.filter or @plugin.certificates")
        _process.serve(registrations, self._serving, address)

    @contextmanager
    def _serving(self, server: Server) -> Iterator[None]:
        """Has `reload_certificates` reach ``server``. There is one in a plugin's process, and one for each tester."""
        with self._servers_lock:
            self._servers.add(server)
        try:
            yield
        finally:
            with self._servers_lock:
                self._servers.discard(server)

    def _refuse_second(self, registered: Handler | None) -> None:
        if registered is not None:
            raise ValueError(f"plugin {self.name!r} already has the {registered}")
