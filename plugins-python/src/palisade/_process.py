"""A plugin's process as its host expects it: environment, stdout, the handshake line, signals, and its end.

Environment, read once:

``PALISADE_PLUGIN``           ``ON``: a host started this process. Without it ``serve()`` explains and exits.
``PLUGIN_PROTOCOL_VERSIONS``  comma list, must contain 1; absent is fine.
``PLUGIN_UNIX_SOCKET_DIR``    where to make the socket; absent: TCP on 127.0.0.1, any port.
``PLUGIN_UNIX_SOCKET_GROUP``  group (name or number) that the socket is given to, mode 0660.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import secrets
import select
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from ._logs import configure_logging
from ._server import GRACE, Registrations, Server
from ._signals import for_this_process

logger = logging.getLogger("palisade")

COOKIE = "PALISADE_PLUGIN"
COOKIE_VALUE = "ON"
PROTOCOL_VERSION = 1

# sockaddr_un.sun_path has 108 bytes on Linux and 104 on macOS and the BSDs, with the terminating NUL.
MAX_SOCKET_PATH = 107 if sys.platform == "linux" else 103

# What is left to leave in after the grace: past it, the process ends whatever still runs.
_LAST_SECONDS = 1.0
_PARENT_POLL_SECONDS = 1.0

_HINT = """\
{program}: this program is a plugin, and is meant to be started by palisade.

  run it behind a proxy:      name it in a plugin's `command:`, then palisade run -c palisade.yaml
  test it without a proxy:    palisade.testing.PluginTester, in the README of palisade-plugin
"""


class StartError(Exception):
    """The process cannot serve where and how the host asked."""


@dataclass(frozen=True)
class Host:
    """The process that started this one."""

    stdout: int
    """The stdout that we were given. Only the handshake goes there."""
    pid: int


#: Surrounds the time in which a server gets calls.
Serving = Callable[[Server], AbstractContextManager[None]]

_host: Host | None = None


def claim_stdout() -> None:
    """Keeps stdout for the handshake, and sends what the program prints to stderr from now on, line by line.

    Called when a plugin object is made, which is before user code prints, bar what it prints while it is imported.
    Does nothing in a process that no host started, and nothing the second time.
    """
    global _host
    if _host is not None or os.environ.get(COOKIE) != COOKIE_VALUE:
        return
    _host = Host(stdout=os.dup(1), pid=os.getppid())
    # Not flushed before: half a line that is still in the buffer would stand in front of the handshake.
    os.dup2(2, 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A header value may hold what the terminal's encoding cannot; printing it must not fail the request.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")


def serve(registrations: Registrations, serving: Serving, address: str | None) -> None:
    """Serves until the host stops the plugin or dies. ``serving`` surrounds the time in which calls come.

    With an ``address`` a host knows where to find the plugin: there is no handshake, and none that started it is needed.
    """
    if _host is None and address is None:
        sys.stderr.write(_HINT.format(program=sys.argv[0] or registrations.name))
        sys.exit(1)
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("serve() must be called on the main thread: it handles signals")
    configure_logging()
    handled = [signal.SIGTERM, signal.SIGINT]
    if _host is not None:
        # Ctrl-C in a terminal reaches the whole process group; the host decides when its plugins stop.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        handled.remove(signal.SIGINT)
    try:
        check_protocol_version(os.environ.get("PLUGIN_PROTOCOL_VERSIONS"))
        if address is not None:
            endpoint = Endpoint.parse(address)
        else:
            endpoint = Endpoint.choose(os.environ.get("PLUGIN_UNIX_SOCKET_DIR"))
        with for_this_process(handled):
            asyncio.run(_serve(registrations, _host, endpoint, serving, handled))
    except StartError as error:
        logger.error("%s", error)
        sys.exit(1)


async def _serve(
    registrations: Registrations,
    host: Host | None,
    endpoint: Endpoint,
    serving: Serving,
    handled: Iterable[signal.Signals],
) -> None:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[float] = loop.create_future()

    def stop_within(grace: float, why: str) -> None:
        if not stop.done():
            logger.info("stopping within %g s: %s", grace, why)
            stop.set_result(grace)

    def host_gone(why: str) -> None:
        # The loop may have ended by itself, while the host ended too.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(stop_within, 0.0, why)

    for number in handled:
        loop.add_signal_handler(number, stop_within, GRACE, f"got {number.name}")
    server = Server(registrations, on_shutdown=lambda: stop_within(GRACE, "the host asked to shut down"))
    with serving(server):
        grace = 0.0
        try:
            port = await endpoint.listen(server)
            if host is not None:
                watch_host(host, host_gone)
                if not endpoint.known:
                    await endpoint.listen_for_streams(server)
                    write_handshake(host.stdout, endpoint.handshake(port))
            if endpoint.known:
                logger.info("listening on %s", endpoint.grpc_address)
            grace = await stop
        finally:
            _leave_within(grace + _LAST_SECONDS)
            await server.stop(grace)


def check_protocol_version(offered: str | None) -> None:
    """Raises StartError when the host offers versions, and ours is not among them."""
    if offered is not None and str(PROTOCOL_VERSION) not in [version.strip() for version in offered.split(",")]:
        raise StartError(
            f"the host offers plugin protocol versions {offered!r} (PLUGIN_PROTOCOL_VERSIONS), and this plugin has"
            f" {PROTOCOL_VERSION}: use a palisade-plugin release made for this host"
        )


@dataclass(frozen=True)
class Endpoint:
    """Where to listen: a unix socket, or TCP on the loopback address."""

    socket: Path | None
    tcp: str = "127.0.0.1:0"
    known: bool = False
    """Whether the host has been told already."""

    @classmethod
    def parse(cls, address: str) -> Endpoint:
        """From ``unix:/path`` or ``tcp:IP:PORT``, as a plugin's ``address:`` is written."""
        network, _, place = address.partition(":")
        if network == "unix" and place.startswith("/"):
            return cls(_short_enough(Path(place)), known=True)
        if network == "tcp" and place.rpartition(":")[2].isdigit():
            return cls(None, tcp=place, known=True)
        raise StartError(f"cannot listen on {address!r}: an address is unix:/path or tcp:IP:PORT")

    @classmethod
    def choose(cls, directory: str | None) -> Endpoint:
        """Raises StartError when the path would not fit into a socket address."""
        if not directory:
            return cls(None)
        # Instances of a plugin may share a directory, and gRPC removes a socket that is in its way.
        path = Path(directory).absolute() / f"plugin-{secrets.token_hex(4)}.sock"
        return cls(_short_enough(path, ": have PLUGIN_UNIX_SOCKET_DIR name a shorter directory"))

    @property
    def grpc_address(self) -> str:
        # gRPC takes the address for a URI and decodes percent signs.
        return f"unix:{quote(os.fsencode(self.socket))}" if self.socket else self.tcp

    def handshake(self, port: int) -> bytes:
        network, address = ("unix", os.fsencode(self.socket)) if self.socket else ("tcp", b"127.0.0.1:%d" % port)
        return b"1|%d|%s|%s|grpc\n" % (PROTOCOL_VERSION, network.encode(), address)

    async def listen(self, server: Server) -> int:
        """Starts ``server`` here; returns the port of a TCP endpoint."""
        try:
            port = await server.start(self.grpc_address)
        except RuntimeError as error:
            raise StartError(f"cannot listen on {self.grpc_address}: {error}") from error
        if self.socket:
            _give_to_group(self.socket)
        return port

    async def listen_for_streams(self, server: Server) -> None:
        """Starts a faster server for batches beside the socket, where there is one and the path is not too long for it."""
        if self.socket is None:
            return
        beside = self.socket.with_suffix(".many")
        if len(os.fsencode(beside)) > MAX_SOCKET_PATH:
            return
        try:
            await server.start_streams(beside)
        except OSError as error:
            raise StartError(f"cannot listen on {beside}: {error}") from error
        if beside.exists():
            _give_to_group(beside)


def _give_to_group(socket: Path) -> None:
    group = os.environ.get("PLUGIN_UNIX_SOCKET_GROUP")
    if not group:
        return
    try:
        shutil.chown(socket, group=int(group) if group.isdigit() else group)
        socket.chmod(0o660)
    except (OSError, LookupError) as error:
        raise StartError(f"cannot give the socket to PLUGIN_UNIX_SOCKET_GROUP {group!r}: {error}") from error


def _short_enough(path: Path, advice: str = "") -> Path:
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        raise StartError(f"the socket path {path} has {length} bytes, and {MAX_SOCKET_PATH} are allowed{advice}")
    return path


def write_handshake(descriptor: int, line: bytes) -> None:
    """Raises StartError when nobody reads: the host died while this process started."""
    try:
        while line:
            line = line[os.write(descriptor, line) :]
    except OSError as error:
        raise StartError(f"cannot write the handshake to stdout: {error}") from error


def watch_host(host: Host, gone: Callable[[str], None]) -> None:
    """Calls ``gone``, on another thread, once the host is dead.

    Two signs, because each has a blind spot. The parent process ends: but a launcher (``sh -c``, ``uv run``) may stand
    between us and the host, and in a PID namespace the parent may be invisible. Nobody holds the other end of our
    stdout: but it may not be a pipe. A parent that died before this call is found by the handshake, which nobody
    reads; so pid 1 needs no special meaning, and a host may be pid 1 of a container.
    """
    signs = select.poll()
    parent = _open_parent(host.pid)
    if parent is not None:
        signs.register(parent, select.POLLIN)
    mode = os.fstat(host.stdout).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        # No events asked for: an error or a hang-up is always told.
        signs.register(host.stdout, 0)

    def wait() -> None:
        while os.getppid() == host.pid:
            for descriptor, _ in signs.poll(None if parent is not None else _PARENT_POLL_SECONDS * 1000):
                gone("the host is gone" if descriptor == parent else "the host has closed this plugin's stdout")
                return
        gone("the host is gone")

    threading.Thread(target=wait, name="watch-host", daemon=True).start()


def _open_parent(pid: int) -> int | None:
    """A descriptor that is readable once ``pid`` has ended; None where there is no such thing, or a sandbox forbids
    it, or the parent is outside our PID namespace (pid 0)."""
    if pid <= 0 or not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _leave_within(seconds: float) -> None:
    """Ends the process if a handler outlives the stop: Python would wait for its thread for ever."""

    def leave() -> NoReturn:
        logger.error("a handler still runs %g s after the stop began: leaving without it", seconds)
        logging.shutdown()
        os._exit(1)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
