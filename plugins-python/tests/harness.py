"""Plugins as real processes, and a host that knows only bytes."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import grpc

from palisade import Address, Headers, Request, _host_wire
from palisade._generated import lifecycle_pb2
from palisade.testing import RequestOutcome

#: Seconds. A test that gets there has failed; on a loaded machine everything else may take its time.
DEADLINE = 60.0

HEALTH = "grpc.health.v1.Health"
FILTER = "palisade.plugin.v1.Filter"
LIFECYCLE = "palisade.plugin.v1.Lifecycle"
CERTIFICATES = "palisade.plugin.v1.Certificates"

FILTER_PROGRAM = """
    from palisade import Plugin, allow, deny

    plugin = Plugin("test")

    @plugin.filter
    def check(request, config):
        return deny(403) if request.path == "/denied" else allow()

    plugin.serve()
"""


def environment(**variables: str | None) -> dict[str, str]:
    """What a host gives to a plugin: nothing that it was not given."""
    given = {"PATH": os.environ["PATH"], "PALISADE_PLUGIN": "ON", "PLUGIN_PROTOCOL_VERSIONS": "1", **variables}
    return {name: value for name, value in given.items() if value is not None}


class PluginProcess:
    """A program that is started like a plugin. Killed at the end of the ``with`` block."""

    def __init__(self, program: str | Path, **variables: str | None) -> None:
        # Short: a socket's path must fit into 107 bytes, and pytest's tmp_path may not.
        self.directory = Path(tempfile.mkdtemp(prefix="plugin-", dir="/tmp"))
        path = program if isinstance(program, Path) else self.directory / "program.py"
        if isinstance(program, str):
            path.write_text(textwrap.dedent(program))
        variables = {"PLUGIN_UNIX_SOCKET_DIR": str(self.directory), **variables}
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", str(path)],
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.directory,
        )
        self._log = b""
        self._log_grown = threading.Condition()
        self._log_reader = threading.Thread(target=self._read_log)
        self._log_reader.start()
        self._channel: grpc.Channel | None = None
        self._other_channels: list[grpc.Channel] = []

    def __enter__(self) -> PluginProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for channel in (self._channel, *self._other_channels):
            if channel is not None:
                channel.close()
        self.process.kill()
        self.process.wait(DEADLINE)
        self._log_reader.join(DEADLINE)
        assert self.process.stdout is not None and self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        shutil.rmtree(self.directory)
        if error is not None:
            print(f"the plugin's log:\n{self.log}")

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        while chunk := self.process.stderr.read1():  # type: ignore[attr-defined]
            with self._log_grown:
                self._log += chunk
                self._log_grown.notify_all()

    @property
    def log(self) -> str:
        return self._log.decode(errors="replace")

    def wait_for_log(self, text: str) -> None:
        with self._log_grown:
            assert self._log_grown.wait_for(lambda: text in self.log, DEADLINE), f"no {text!r} in {self.log}"

    def read_line(self) -> bytes:
        """The next line on stdout; empty at its end."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], DEADLINE)
        assert readable, f"nothing on stdout: {self.log}"
        return self.process.stdout.readline()

    def connect_unconfigured(self) -> PluginProcess:
        """Reads the handshake."""
        line = self.read_line().decode()
        assert line.startswith("1|1|"), self.log
        network, self.address = line.rstrip("\n").split("|")[2:4]
        address = self.address
        self._channel = grpc.insecure_channel(f"unix:{quote(address)}" if network == "unix" else address)
        return self

    def connect(self, config: Mapping[str, Any] | None = None) -> PluginProcess:
        """Reads the handshake and configures the plugin, with hash "1"."""
        self.connect_unconfigured()
        self.configure(config or {}, "1")
        return self

    def configure(self, config: Mapping[str, Any], hash: str) -> None:
        answer = self.call(f"{LIFECYCLE}/Configure", _host_wire.encode_configure(dict(config), hash))
        assert lifecycle_pb2.ConfigureResponse.FromString(answer).hash == hash

    def also(self, channel: grpc.Channel) -> grpc.Channel:
        """To be closed with this."""
        self._other_channels.append(channel)
        return channel

    def stream_socket(self) -> Path:
        """What the plugin says of it."""
        described = lifecycle_pb2.DescribeResponse.FromString(self.call(f"{LIFECYCLE}/Describe"))
        return Path(self.address).with_name(described.filter.stream_socket)

    def call(self, method: str, message: bytes = b"") -> bytes:
        answer: bytes = self.future(method, message).result()
        return answer

    def future(self, method: str, message: bytes = b"") -> Any:
        assert self._channel is not None
        call: Any = self._channel.unary_unary(f"/{method}")
        return call.future(message, timeout=DEADLINE, wait_for_ready=True)

    def stream(self, method: str, message: bytes = b"") -> Any:
        assert self._channel is not None
        call: Any = self._channel.unary_stream(f"/{method}")
        return call(message, timeout=DEADLINE)

    def check(self, path: str = "/", headers: Headers = Headers(), config_hash: str = "1") -> RequestOutcome:
        return outcome(self.call(f"{FILTER}/CheckRequest", request(path, headers, config_hash)))

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Waits for the exit; then the log is complete."""
        status = self.process.wait(DEADLINE)
        self._log_reader.join(DEADLINE)
        return status


def request(path: str = "/", headers: Headers = Headers(), config_hash: str = "1") -> bytes:
    """An encoded CheckRequestRequest."""
    message = Request(
        method="GET",
        scheme="http",
        authority="localhost",
        path=path,
        query="",
        has_query=False,
        protocol="HTTP/1.1",
        headers=headers,
        peer=Address("127.0.0.1", 1),
        local=Address("127.0.0.1", 2),
        tls=None,
        listener="test",
        route=None,
        id="id-1",
        traceparent="",
        tracestate="",
    )
    return _host_wire.encode_check_request(message, None, config_hash)


def outcome(answer: bytes) -> RequestOutcome:
    return RequestOutcome(_host_wire.decode_check_request(answer))
