"""Processes of a run: started, pinned to cores, measured, ended, also when the run itself is."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
LONG = 60.0
# From <linux/prctl.h>.
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# As the kernel has the names of their threads, which are cut behind 15 characters.
HOTSPOT_COMPILERS = ("C1 Compiler", "C2 Compiler")
LIBC = ctypes.CDLL(None, use_errno=True)


def own_what_is_started() -> None:
    """From here on a signal ends the run as an exception does, and orphans of what it started become its own."""
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def end(number: int, _: object) -> None:
        # A second one would disturb the end that is under way.
        for other in ENDING:
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in ENDING:
        # What is ignored from the start, as under nohup, stays so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def before_exec(cores: set[int] | None = None) -> Callable[[], None]:
    """For a child: it ends when the run does, however that ends, and has its cores from the start."""
    parent = os.getpid()

    def prepare() -> None:
        # A group of its own: Ctrl-C is for the run, which ends the others in order.
        os.setpgid(0, 0)
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        if cores:
            os.sched_setaffinity(0, cores)

    return prepare


class Group:
    """Everything that a run starts. What is left when it ends is killed."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, command: list[str], name: str, cores: set[int] | None = None) -> int:
        with (self._logs / f"{name}.out").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       preexec_fn=before_exec(cores))
        self._running[process.pid] = process
        return process.pid

    def end(self) -> None:
        """Asks all to end, waits for at most 10 s in all, kills what is left, with what had left its parent."""
        deadline = time.monotonic() + 10
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(max(0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            while os.waitpid(-1, 0):
                pass
        except ChildProcessError:
            pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, pid: int) -> None:
    _until(f"port {port}", pid, lambda: _connects(socket.AF_INET, ("127.0.0.1", port)))


def wait_for_socket(path: Path, pid: int) -> None:
    _until(str(path), pid, lambda: _connects(socket.AF_UNIX, str(path)))


def _connects(family: int, address: str | tuple[str, int]) -> bool:
    with socket.socket(family) as probe:
        try:
            probe.connect(address)
        except OSError:
            return False
        return True


def _until(what: str, pid: int, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not holds():
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise RuntimeError(f"who should open {what} has ended")
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
    return sum(_cpu_seconds(Path(f"/proc/{pid}/stat")) for pid in pids)


def compiler_seconds(pids: Iterable[int]) -> float:
    """User and system time of the threads in which HotSpot compiles."""
    tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    return sum(_cpu_seconds(task, of=HOTSPOT_COMPILERS) for task in tasks)


def _cpu_seconds(stat: Path, of: tuple[str, ...] = ("",)) -> float:
    try:
        name, fields = stat.read_text().split("(", 1)[1].rsplit(")", 1)
    except OSError:
        # It has ended.
        return 0
    user, system = fields.split()[11:13]
    return (int(user) + int(system)) / TICKS if name.startswith(of) else 0


def memory(pid: int, field: str = "VmRSS") -> int:
    """In KiB; `VmHWM` is the most there ever was."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    return 0


def pin(pids: Iterable[int], cores: set[int] | None) -> None:
    """Every thread, and those that they will start; without cores, none."""
    for pid in pids if cores else ():
        for task in Path(f"/proc/{pid}/task").glob("*"):
            try:
                os.sched_setaffinity(int(task.name), cores or ())
            except OSError:
                pass
