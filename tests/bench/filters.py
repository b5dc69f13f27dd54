"""Filters that work or wait before they decide as the sample filter does, for what is said about tuning.

    filters.py works|waits|awaits
"""

from __future__ import annotations

import asyncio
import sys
import time

from palisade import Config, Plugin, Request, Verdict, allow, deny

WORK, WAIT = 0.0002, 0.01

plugin = Plugin("bench-filters", version="0.1.0")


def verdict(request: Request) -> Verdict:
    return allow() if request.headers.get("user") == "admin" else deny(403, "forbidden\n")


def works(request: Request, config: Config) -> Verdict:
    """Takes CPU time of its own thread, as what it computes would."""
    end = time.thread_time() + WORK
    while time.thread_time() < end:
        pass
    return verdict(request)


def waits(request: Request, config: Config) -> Verdict:
    time.sleep(WAIT)
    return verdict(request)


async def awaits(request: Request, config: Config) -> Verdict:
    await asyncio.sleep(WAIT)
    return verdict(request)


if __name__ == "__main__":
    plugin.filter({"works": works, "waits": waits, "awaits": awaits}[sys.argv[1]])
    plugin.serve()
