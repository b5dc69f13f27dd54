"""Processes of a run: started, pinned to cores, measured, ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
LONG = 60.0


class Group:
    """Everything that a run starts. What is left when it ends is killed."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, command: list[str], name: str) -> int:
        with (self._logs / f"{name}.out").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._running[process.pid] = process
        return process.pid

    def pids(self) -> list[int]:
        return list(self._running)

    def end(self) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
        self._running.clear()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int) -> None:
    _until(f"port {port}", lambda: _connects(socket.AF_INET, ("127.0.0.1", port)))


def wait_for_socket(path: Path) -> None:
    _until(str(path), lambda: _connects(socket.AF_UNIX, str(path)))


def _connects(family: int, address: str | tuple[str, int]) -> bool:
    with socket.socket(family) as probe:
        try:
            probe.connect(address)
        except OSError:
            return False
        return True


def _until(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not open within {LONG:g} s")
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    """Children and theirs."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in map(int, children):
            found += [child, *descendants(child)]
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time, with that of threads that have ended."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def memory(pid: int, field: str = "VmRSS") -> int:
    """In KiB; `VmHWM` is the most there ever was."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    return 0


def pin(pids: Iterable[int], cores: set[int]) -> None:
    """Every thread, and those that they will start."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            try:
                os.sched_setaffinity(int(task.name), cores)
            except OSError:
                pass
