"""The machine that the figures are from: how fast it computes and wakes processes, and how busy it was otherwise."""

from __future__ import annotations

import os
import platform
import socket
import statistics
import time
from pathlib import Path
from typing import Any

from processes import TICKS

# At most; on a busy machine, where one takes milliseconds, what there is in half a second.
ROUND_TRIPS, HALF_A_SECOND = 5_000, 500_000_000

# What works half of the time: so long at a time, and so long altogether, in ns. Later than this it is not for the time
# that it takes to be woken.
TURN, WATCHED, LATE = 250_000, 3_000_000_000, 200_000


def calibration() -> dict[str, float]:
    """What makes latencies of different machines comparable.

    `round_trip_us` is the median for one byte there and back over a unix socket between processes on core 0 and core 1:
    two processes are woken, each on a core that waits for work. `half_load_p999_us` is what one request in a thousand
    takes at half load because a core does something else meanwhile: no proxy has a better one. `loop_ms` is the best of
    five of one fixed loop in Python, on core 0.
    """
    return {"round_trip_us": round(statistics.median(_round_trips()), 1),
            "half_load_p999_us": round(half_load_p999(_stops(), WATCHED) / 1000), "loop_ms": round(_loop(), 1)}


def half_load_p999(stops: list[int], watched: int) -> float:
    """What one request in a thousand takes at half load, on cores that were stopped so often, for so long each time.

    What comes while a core is stopped for `stop` waits for its end, and for what came before it; and what comes behind
    it, until that is worked off, once more as long. Of all that, `2 * (stop - late)` waits longer than `late`.
    """
    least, most = 0.0, float(max(stops, default=0))
    while most - least > 1000:
        late = (least + most) / 2
        if sum(2 * (stop - late) for stop in stops if stop > late) > watched / 1000:
            least = late
        else:
            most = late
    return most


def _stops() -> list[int]:
    """How late a process was, each time that it was, that works half of the time, on both cores at the same time."""
    ends, children = [], []
    for core in (0, 1):
        end, told = os.pipe()
        ends.append(end)
        children.append(child := os.fork())
        if child == 0:
            status = 1
            try:
                os.sched_setaffinity(0, {core})
                os.write(told, ",".join(map(str, _half_at_work()[:5_000])).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(told)
    stops: list[int] = []
    for end, child in zip(ends, children):
        with open(end, encoding="ascii") as said:
            stops += [int(stop) for stop in said.read().split(",") if stop]
        if os.waitpid(child, 0)[1]:
            raise ChildProcessError("the calibration failed")
    return stops


def _half_at_work() -> list[int]:
    stops: list[int] = []
    now = time.perf_counter_ns()
    end = now + WATCHED
    while now < end:
        done = now + TURN
        while now < done:
            before, now = now, time.perf_counter_ns()
            if now - before > LATE:
                stops.append(now - before)
        time.sleep(TURN / 1e9)
        before, now = now, time.perf_counter_ns()
        if now - before > TURN + LATE:
            stops.append(now - before - TURN)
    return stops


def _round_trips() -> list[float]:
    here, there = socket.socketpair()
    child = os.fork()
    if child == 0:
        here.close()
        os.sched_setaffinity(0, {1})
        while byte := there.recv(1):
            there.send(byte)
        os._exit(0)
    there.close()
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    times: list[int] = []
    end = time.perf_counter_ns() + HALF_A_SECOND
    try:
        while len(times) < ROUND_TRIPS and time.perf_counter_ns() < end:
            begin = time.perf_counter_ns()
            here.send(b"x")
            here.recv(1)
            times.append(time.perf_counter_ns() - begin)
    finally:
        here.close()
        os.waitpid(child, 0)
        os.sched_setaffinity(0, cores)
    return [taken / 1000 for taken in times]


def _loop() -> float:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        value = 1
        for _ in range(500_000):
            value = (value * 31 + 7) & 0xFFFF_FFFF
        best = min(best, time.perf_counter() - begin)
    os.sched_setaffinity(0, cores)
    return best * 1000


def busy() -> list[float]:
    """Seconds that each core has worked since it started, for whomever."""
    cores: list[float] = []
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            cores.append((user + nice + system + irq + softirq + steal) / TICKS)
    return cores


def description() -> dict[str, Any]:
    model = next((line.split(": ", 1)[1] for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    return {"cpu": model, "cores": os.cpu_count(), "kernel": platform.release(), "load_average": os.getloadavg()[2]}
