"""Many calls in one message, over a stream that stays open (`Filter.CheckBatches`).

What a message costs in Python is then paid once for many requests. Functions that are not coroutines are called one
after the other on a single thread, as long as they are quick: handing each to a thread of its own would cost more than
most of them take. When one blocks, other threads take over what waits behind it, so no call waits for another one
longer than `_PATIENCE`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import grpc

from . import _wire
from ._errors import CallError
from ._judgement import Judgement

_PATIENCE = 0.001
"""Seconds that calls wait behind one that is worked on before other threads take over."""

_FULL = 256 * 1024
"""A message is sent when its answers have this many bytes together."""


@dataclass(slots=True)
class _Batch:
    """How many of its calls are not begun."""

    waiting: int


class Batches:
    """One stream of a host. Lives on the event loop; `_work` alone runs on threads."""

    def __init__(self, judgement: Judgement, pool: Executor, workers: int, context: Any, stopping: asyncio.Event) -> None:
        self._judgement = judgement
        self._pool = pool
        self._workers = workers
        self._context = context
        self._stopping = stopping
        self._loop = asyncio.get_running_loop()
        # Read and changed by threads too, each time with one operation that no other can come between.
        self._queue: deque[tuple[_wire.BatchedCall, float, _Batch]] = deque()
        self._answers: deque[_wire.BatchedAnswer] = deque()
        # Guards what follows.
        self._lock = threading.Lock()
        self._taken = 0
        self._working = 0
        self._begun = 0
        # Of the loop alone.
        self._open = 0
        self._tasks: dict[asyncio.Task[None], asyncio.TimerHandle] = {}
        self._watching = False
        self._answered = asyncio.Event()
        self._stopped = False
        # Whether the loop is about to look at answers. Set twice by a race, it looks twice.
        self._woken = False

    async def serve(self) -> None:
        """Until the host ends the stream, or until the plugin stops and has answered."""
        writing = asyncio.create_task(self._write())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            while True:
                reading = asyncio.ensure_future(self._context.read())
                await asyncio.wait((reading, stopping, writing), return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    reading.cancel()
                    break
                data = reading.result()
                if data is grpc.aio.EOF:
                    break
                self._take(data)
            self._stopped = True
            self._answered.set()
            await writing
        finally:
            writing.cancel()
            stopping.cancel()
            for task in list(self._tasks):
                task.cancel()
            self._queue.clear()

    def _take(self, data: bytes) -> None:
        config_hash, calls = _wire.decode_batch(data)
        now = self._loop.time()
        self._open += len(calls)
        try:
            configured = self._judgement.configured(config_hash)
        except CallError as error:
            self._answers.extend(_wire.failed_answer(call.id, error) for call in calls)
            with self._lock:
                self._taken += 1
            self._flush_soon()
            return
        threaded = []
        for call in calls:
            call.configured = configured
            if self._judgement.is_async(call):
                self._spawn(call, self._judgement.judge(call), now)
            else:
                threaded.append(call)
        if not threaded:
            with self._lock:
                self._taken += 1
            # Behind the first step of each task: most are at their end with it.
            self._flush_soon()
            return
        batch = _Batch(len(threaded))
        self._queue.extend((call, now + call.timeout, batch) for call in threaded)
        with self._lock:
            idle = self._working == 0
            self._working += idle
        if idle:
            self._pool.submit(self._work)
        if not self._watching:
            self._watching = True
            self._loop.call_later(_PATIENCE, self._watch, self._begun)

    def _watch(self, begun: int) -> None:
        """Brings in more threads when none of those at work has begun a call for a while."""
        waiting = len(self._queue)
        if not waiting and not self._working:
            self._watching = False
            return
        if self._begun == begun:
            # One that blocks is no reason for the host to wait.
            self._flush()
            with self._lock:
                more = min(waiting, self._workers - self._working)
                self._working += more
            for _ in range(more):
                self._pool.submit(self._work)
        self._loop.call_later(_PATIENCE, self._watch, self._begun)

    def _work(self) -> None:
        """Takes calls until there are none. On a thread."""
        while True:
            try:
                call, deadline, batch = self._queue.popleft()
            except IndexError:
                with self._lock:
                    # Looked at again under the lock: a call that came meanwhile found somebody at work.
                    if self._queue:
                        continue
                    self._working -= 1
                break
            with self._lock:
                self._begun += 1
                batch.waiting -= 1
                taken = batch.waiting == 0
                self._taken += taken
            self._answer(call, deadline)
            if taken:
                self._wake()
        if self._answers:
            self._wake()

    def _answer(self, call: _wire.BatchedCall, deadline: float) -> None:
        """Works on one call. On a thread."""
        if time.monotonic() > deadline:
            self._answers.append(_wire.failed_answer(call.id, _LATE))
            return
        try:
            verdict = self._judgement.judge_now(call)
            if inspect.isawaitable(verdict):
                self._call_on_loop(self._spawn, call, verdict, self._loop.time())
                return
            answer = self._judgement.answer(call, verdict)
        except CallError as error:
            answer = _wire.failed_answer(call.id, error)
        self._answers.append(answer)

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._call_on_loop(self._flush)

    def _call_on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            pass  # The loop is closed: nobody waits for the answer any more.

    def _spawn(self, call: _wire.BatchedCall, verdict: Any, now: float) -> None:
        task = self._loop.create_task(self._finish(call, verdict))
        late = self._loop.call_at(now + call.timeout, task.cancel)
        self._tasks[task] = late
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task).cancel()

    async def _finish(self, call: _wire.BatchedCall, verdict: Any) -> None:
        try:
            answer = self._judgement.answer(call, await verdict)
        except CallError as error:
            answer = _wire.failed_answer(call.id, error)
        except asyncio.CancelledError:
            answer = _wire.failed_answer(call.id, _LATE)
        self._answers.append(answer)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        # First: an answer that comes from here on wakes anew.
        self._woken = False
        self._answered.set()

    async def _write(self) -> None:
        while True:
            await self._answered.wait()
            self._answered.clear()
            while self._answers or self._taken:
                with self._lock:
                    taken, self._taken = self._taken, 0
                answers, config_hash = self._next_answers()
                self._open -= len(answers)
                await self._context.write(_wire.encode_batch_answer(answers, taken, config_hash))
            if self._stopped and self._open == 0:
                return

    def _next_answers(self) -> tuple[list[_wire.BatchedAnswer], str]:
        """What fits into one message, which has one configuration only, and the hash of that."""
        answers: list[_wire.BatchedAnswer] = []
        size, config_hash = 0, ""
        while self._answers and size < _FULL:
            answer = self._answers[0]
            if config_hash and answer.config_hash and answer.config_hash != config_hash:
                break
            config_hash = config_hash or answer.config_hash
            answers.append(self._answers.popleft())
            size += answer.size
        return answers, config_hash


_LATE = CallError("DEADLINE_EXCEEDED", "the host waits no longer")
