"""What a plugin's process handles of signals, and its children do not.

For each signal that asyncio handles, the C handler writes a byte to a socket pair of the loop's. A child by fork, as
multiprocessing makes them, inherits both: what is meant to end the child would not, and would end its parent.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

#: Signals that the loop of this process handles now.
_handled: frozenset[signal.Signals] = frozenset()


class _Forking(threading.local):
    """A thread that forks."""

    held: Iterable[int] = ()
    """What it has blocked for that."""


_forking = _Forking()


@contextmanager
def for_this_process(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """For the time in which a loop handles ``signals``: a child by fork begins with their default."""
    global _handled
    _register()
    _handled = frozenset(signals)
    try:
        yield
    finally:
        _handled = frozenset()


@functools.cache
def _register() -> None:
    """Once in a process: there is no way back."""
    os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_begin_child)


def _hold() -> None:
    # A child may be sent a signal before it has come as far as its beginning here.
    _forking.held = _handled - signal.pthread_sigmask(signal.SIG_BLOCK, _handled)


def _let_go() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _forking.held)


def _begin_child() -> None:
    global _handled
    if _handled:
        signal.set_wakeup_fd(-1)
        for number in _handled:
            signal.signal(number, signal.SIG_DFL)
        # Its own children get what it makes of them.
        _handled = frozenset()
    _let_go()
