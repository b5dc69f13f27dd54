"""Threads that wait for more to do: what comes is done once, and others get theirs."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import DEADLINE

from palisade import _threads
from palisade._threads import Threads


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_what_comes_again_is_done_by_the_thread_that_waits(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_threads, "_LINGER", DEADLINE)
    monkeypatch.setattr(_threads, "_STINT", DEADLINE)
    threads = Threads(pool)
    done: queue.SimpleQueue[int] = queue.SimpleQueue()

    def ask() -> int:
        threads.submit(lambda: done.put(threading.get_ident()))
        return done.get(timeout=DEADLINE)

    first = ask()
    for _ in range(100):
        eventually(lambda: threads._lingers is not None)
        assert ask() == first
    # Lets it go.
    monkeypatch.setattr(_threads, "_STINT", 0.0)
    monkeypatch.setattr(_threads, "_LINGER", 0.0)
    eventually(lambda: threads._lingers is not None)
    ask()


@pytest.mark.parametrize("stint", [0.05, 0.0, -1.0])
def test_everything_is_done_once_whenever_it_comes(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, stint: float
) -> None:
    # So short that many come just when a thread has waited for long enough.
    monkeypatch.setattr(_threads, "_LINGER", 0.0002)
    monkeypatch.setattr(_threads, "_STINT", stint)
    threads = Threads(pool)
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    chance = random.Random(1)
    for number in range(2000):
        threads.submit(lambda number=number: done.put(number))  # type: ignore[misc]
        assert done.get(timeout=DEADLINE) == number
        time.sleep(chance.random() * 0.0004)
    assert done.empty()


def test_nobody_waits_for_more_where_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "_LINGER", DEADLINE)
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        threads = Threads(pool)
        # The pool's only thread is at the first one when the second one comes.
        threads.submit(lambda: threads.submit(lambda: done.put(1)))
        assert done.get(timeout=DEADLINE / 2) == 1
        monkeypatch.setattr(_threads, "_LINGER", 0.0)
        threads.submit(lambda: None)


def test_the_pool_is_left_to_others(pool: ThreadPoolExecutor) -> None:
    threads = Threads(pool)
    for _ in range(3):
        both = threading.Barrier(3)
        for _ in range(2):
            threads.submit(lambda: both.wait(DEADLINE))
        both.wait(DEADLINE)
        both.reset()
        others = [pool.submit(both.wait, DEADLINE) for _ in range(2)]
        both.wait(DEADLINE)
        for other in others:
            other.result(DEADLINE)


def eventually(what: Callable[[], bool]) -> None:
    while not what():
        time.sleep(0.0001)
