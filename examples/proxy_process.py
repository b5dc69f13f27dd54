"""What the scripts of this folder share: a proxy that they start, ask and stop, and requests to it."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PALISADE = Path(os.environ.get("PALISADE", ROOT / "target/debug/palisade"))

T = TypeVar("T")
Address = tuple[str, int]


class Failure(Exception):
    """Something did not turn out as it should; the text says what."""


def ensure(condition: object, problem: str) -> None:
    if not condition:
        raise Failure(problem)


def until(what: str, look: Callable[[], T | None], seconds: float = 60) -> T:
    """Looks again and again until there is something to see, and returns it."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        ensure(time.monotonic() < deadline, f"{what}: not within {seconds:g} s")
        time.sleep(0.02)
    return seen


def relocate(configuration: Path, scratch: Path, ports: Mapping[int, int]) -> Path:
    """Copies an example's configuration, with other ports, to where all that it names by relative paths is too.

    Certificates are left out: whoever needs them makes new ones beside the copy.
    """
    for name in (".venv", "target", "plugins-java", "plugins-python"):
        (scratch / name).symlink_to(ROOT / name)
    folder = scratch / configuration.parent.relative_to(ROOT)
    folder.mkdir(parents=True)
    for entry in configuration.parent.iterdir():
        if entry.suffix != ".yaml" and entry.name != "certs":
            (folder / entry.name).symlink_to(entry)
    text = configuration.read_text()
    for port, other in ports.items():
        text, replaced = re.subn(rf"(?<=[:\"]){port}\b", str(other), text)
        ensure(replaced, f"{configuration} does not name port {port}")
    copy = folder / configuration.name
    copy.write_text(text)
    return copy


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    text: str


def get(address: Address, path: str = "/", headers: Mapping[str, str] | None = None) -> Answer:
    """Sends one request over a connection of its own."""
    connection = http.client.HTTPConnection(*address, timeout=30)
    return _get(connection, path, headers or {})


class SecureAnswer(NamedTuple):
    answer: Answer
    common_name: str
    version: str


def get_tls(address: Address, trusted: Path, path: str = "/") -> SecureAnswer:
    """Sends one request over TLS to `localhost`, and trusts only the certificates in that file."""
    context = ssl.create_default_context(cafile=trusted)
    connection = http.client.HTTPSConnection("localhost", address[1], timeout=30)
    with socket.create_connection(address, timeout=30) as plain:
        stream = context.wrap_socket(plain, server_hostname="localhost")
        connection.sock = stream
        certificate = stream.getpeercert() or {}
        version = stream.version() or "?"
        answer = _get(connection, path, {})
    subject: Any = certificate["subject"]
    return SecureAnswer(answer, dict(field for group in subject for field in group)["commonName"], version)


def _get(connection: http.client.HTTPConnection, path: str, headers: Mapping[str, str]) -> Answer:
    try:
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace")
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, text)
    finally:
        connection.close()


class _AdminConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("palisade", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def new_certificate(directory: Path, name: str) -> Path:
    """Replaces the certificate in a directory; returns a copy that stays when it is replaced again."""
    made = subprocess.run([HERE / "new-certificate", directory, name], capture_output=True, text=True)
    ensure(made.returncode == 0, f"new-certificate failed: {made.stderr}")
    return Path(shutil.copy(directory / "cert.pem", directory / f"{name}.pem"))


class Process(NamedTuple):
    """One process, told from a later one with the same id by when it started."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process with this id; None if there is none, or if it has ended and only waits to be noticed."""
        fields = _stat(pid)
        return cls(pid, fields[19]) if fields and fields[0] != "Z" else None

    def has_ended(self) -> bool:
        return Process.of(self.pid) != self


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the program's name, from the state on (proc(5))."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def family(pid: int) -> list[Process]:
    """The process and all that come from it, as far as their parents still live."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]
    parents = {other: int(fields[1]) for other in pids if (fields := _stat(other))}
    members = [pid]
    for member in members:
        members += [child for child, parent in parents.items() if parent == member]
    return [process for process in map(Process.of, members) if process]


class Proxy:
    """A running palisade; ends with its `with` block."""

    def __init__(self, configuration: Path, scratch: Path) -> None:
        """`scratch`: an empty directory for its sockets and its log, with a short path."""
        ensure(PALISADE.exists(), f"{PALISADE} is not built; type `make setup`")
        self._runtime = scratch
        self.log = scratch / "log"
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [PALISADE, "run", "-c", configuration.name],
                cwd=configuration.parent,
                env={**os.environ, "PALISADE_RUNTIME_DIR": str(scratch)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.pid = self._process.pid

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _admin(self, path: str) -> Answer | None:
        """What the admin socket says; None while there is none."""
        ended = self._process.poll()
        ensure(ended is None, f"palisade ended by itself, with status {ended}")
        try:
            return _get(_AdminConnection(self._runtime / "admin.sock"), path, {})
        except (FileNotFoundError, ConnectionRefusedError):
            return None

    def wait_ready(self) -> None:
        """Waits until every listener is open and every required plugin serves."""
        until("palisade is ready", lambda: (answer := self._admin("/ready")) and answer.status == 200)

    def status(self) -> dict[str, Any]:
        answer = until("the admin socket answers", lambda: self._admin("/status"))
        ensure(answer.status == 200, f"GET /status on the admin socket says {answer.status}: {answer.text}")
        status: dict[str, Any] = json.loads(answer.text)
        return status

    def plugin(self, name: str) -> dict[str, Any]:
        """What the status says of one plugin."""
        plugin: dict[str, Any] = next(plugin for plugin in self.status()["plugins"] if plugin["name"] == name)
        return plugin

    def address(self, listener: str) -> Address:
        """Where a listener is, by its name."""
        found = next(it["address"] for it in self.status()["listeners"] if it["name"] == listener)
        host, _, port = found.rpartition(":")
        return host, int(port)

    def stop(self) -> list[Process]:
        """Asks it to end, as `kill` does; returns the processes that there were, of which none is left."""
        processes = family(self.pid)
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(60)
        except subprocess.TimeoutExpired:
            raise Failure("palisade is still there 60 s after SIGTERM") from None
        ensure(status == 0, f"after SIGTERM, palisade ended with status {status}")
        for process in processes:
            until(f"process {process.pid} ends with palisade", process.has_ended, 10)
        return processes

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
