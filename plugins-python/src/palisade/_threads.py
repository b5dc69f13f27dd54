"""Threads for work that comes again and again.

A pool takes longer to begin with a function than many calls take. So a thread that has done its work waits a while for
more: under load, one thread does it all, and only has to be woken.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

_LINGER = 0.01
"""Seconds that a thread waits for more."""

_STINT = 0.05
"""Seconds after which it goes all the same: the pool is not only for this."""


class Threads:
    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        # Guards what follows.
        self._lock = threading.Lock()
        # For each of them, a thread is on its way, which need not be the one that comes to do it.
        self._work: deque[Callable[[], object]] = deque()
        # What the one that waits for more waits for. One is enough: others may be needed for something else.
        self._lingers: threading.Lock | None = None

    def submit(self, work: Callable[[], object]) -> None:
        """Has it done on a thread. It must not raise."""
        with self._lock:
            self._work.append(work)
            lingers, self._lingers = self._lingers, None
        if lingers is None:
            self._pool.submit(self._run)
        else:
            lingers.release()

    def _run(self) -> None:
        until = time.monotonic() + _STINT
        more = threading.Lock()
        more.acquire()
        with self._lock:
            work = self._take()
        while work is not None:
            work()
            work = self._next(until, more)

    def _take(self) -> Callable[[], object] | None:
        return self._work.popleft() if self._work else None

    def _next(self, until: float, more: threading.Lock) -> Callable[[], object] | None:
        with self._lock:
            if time.monotonic() > until:
                return None
            if self._work:
                return self._work.popleft()
            if self._lingers is not None:
                return None
            self._lingers = more
        called = more.acquire(timeout=_LINGER)
        with self._lock:
            if not called:
                if self._lingers is more:
                    self._lingers = None
                    return None
                # Somebody has come just now.
                more.acquire()
            return self._take()
