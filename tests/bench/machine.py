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


def calibration() -> dict[str, float]:
    """What makes latencies of different machines comparable.

    `round_trip_us` is the median for one byte there and back over a unix socket between processes on core 0 and core 1:
    two processes are woken, each on a core that waits for work. `round_trip_p999_us` is what one in a thousand takes: no
    proxy has better ones. `loop_ms` is the best of five of one fixed loop in Python, on core 0.
    """
    trips = sorted(_round_trips())
    late = trips[len(trips) * 999 // 1000]
    return {"round_trip_us": round(statistics.median(trips), 1), "round_trip_p999_us": round(late, 1),
            "loop_ms": round(_loop(), 1)}


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
