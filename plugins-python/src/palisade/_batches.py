"""Many calls in one message, over a stream that stays open (`Filter.CheckBatches`).

What a message costs in Python is then paid once for many requests. Functions that are not coroutines are called one
after the other on a single thread, as long as they are quick: handing each to a thread of its own would cost more than
most of them take. When one blocks, other threads take over what waits behind it, so no call waits for another one
longer than `_PATIENCE`.

What is done for each call is kept small: nothing of it is decoded but what its function looks at, and its answer is
bytes at once. Coroutines are begun one after the other by one task, each in a context of its own. One that comes to its
end at its first step costs no more than that; one that waits keeps the task, and another goes on with the rest.

Where a stream's messages come from and go to is somebody else's: `_stream`'s, or grpcio's, see `serve`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from . import _wire
from ._contexts import go_on
from ._errors import CallError
from ._judgement import Judgement, Subject
from ._threads import Threads
from ._verdicts import Allow, Deny, Keep, Replace

_PATIENCE = 0.001
"""Seconds that calls wait behind one that is worked on before other threads take over. The event loop is kept no longer
by coroutines that compute, and answers wait no longer for others."""

_LONG = 4 * _PATIENCE
"""Seconds after which a call that still has others before it, each of them quick, is reason for one more thread."""

_FULL = 256 * 1024
"""A message is sent when its answers have this many bytes together."""


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    configured: _wire.Configured
    """What its calls are judged by. Not what is in force when a thread has come to them: that may be another one."""
    came: float
    last: _wire.BatchedCall
    """The last one that a thread begins."""


@dataclass(frozen=True, slots=True, eq=False)
class _Begun:
    """A call whose function has been called already, and is no coroutine."""

    awaitable: Any
    """What it has returned."""
    context: Context
    """Where it was called."""


@dataclass(slots=True, eq=False)
class _Coroutines:
    """Calls of one batch that tasks share: whichever comes to run takes the next one."""

    configured: _wire.Configured
    came: float
    calls: deque[tuple[_wire.BatchedCall, Subject, _Begun | None]]
    is_all: bool
    """Whether the batch is taken with the last one of them."""
    tasks: int = 0
    """Those that are on their way to a call."""


class Outlet(Protocol):
    """Where the answers of a stream go."""

    def ready(self) -> bool:
        """Whether it takes a message now. Where it does not, it calls `Batches.go_on` once it does."""

    def send(self, message: bytes) -> None: ...

    def finish(self) -> None:
        """Everything is answered: no message comes behind the last one."""


class Batches:
    """One stream of a host. Lives on the event loop; `_work` alone runs on threads."""

    def __init__(self, judgement: Judgement, threads: Threads, workers: int, outlet: Outlet) -> None:
        self._judgement = judgement
        self._threads = threads
        self._workers = workers
        self._outlet = outlet
        self._loop = asyncio.get_running_loop()
        # What each function on a thread has a copy of: what one sets there is no other one's to see.
        self._context = copy_context()
        # Read and changed by threads too, each time with one operation that no other can come between.
        self._queue: deque[tuple[_wire.BatchedCall, _Batch]] = deque()
        # With the hash of the configuration that it comes of; empty for what is no verdict.
        self._answers: deque[tuple[bytes, str]] = deque()
        # Changes with every call that a thread begins. Two threads may count two calls as one.
        self._begun = 0
        # Guards what follows.
        self._lock = threading.Lock()
        self._taken = 0
        self._working = 0
        # Of the loop alone.
        self._open = 0
        # Those that have not come to their end with their first step.
        self._tasks: dict[asyncio.Task[None], asyncio.TimerHandle] = {}
        # How many of the last batch, that is: as many tasks are likely to be needed for the next one.
        self._waited = 0
        self._watching: asyncio.TimerHandle | None = None
        self._stopped = False
        self._ended = False
        # Whether the loop is about to look at answers. Set twice by a race, it looks twice.
        self._woken = False

    def finish(self) -> None:
        """No batch comes any more; what there is gets its answers."""
        self._stopped = True
        self._flush()

    def go_on(self) -> None:
        """The outlet is ready again."""
        self._flush()

    def end(self) -> None:
        """Nobody waits for an answer any more."""
        self._ended = True
        for task in self._tasks:
            task.cancel()
        self._watch_off()
        self._queue.clear()

    def take(self, data: bytes) -> None:
        """A batch has come. Raises CallError if it is none."""
        config_hash, calls = _wire.decode_batch(data)
        self._open += len(calls)
        try:
            configured = self._judgement.configured(config_hash)
        except CallError as error:
            self._answers.extend([(_wire.encode_failure(call.id, error), "") for call in calls])
            self._taken_on()
            self._flush()
            return
        now = self._loop.time()
        if self._judgement.has_coroutines:
            calls = self._begin_coroutines(calls, configured, now)
            if not calls:
                return
        elif not calls:
            self._taken_on()
            self._flush()
            return
        batch = _Batch(configured, now, calls[-1])
        self._queue.extend([(call, batch) for call in calls])
        with self._lock:
            idle = self._working == 0
            self._working += idle
        if idle:
            self._threads.submit(self._work)
        if self._watching is None:
            self._watch_on()

    # Functions that are not coroutines.

    def _work(self) -> None:
        """Takes calls until there are none. On a thread."""
        while True:
            try:
                call, batch = self._queue.popleft()
            except IndexError:
                with self._lock:
                    # Looked at again under the lock: a call that came meanwhile found somebody at work.
                    if self._queue:
                        continue
                    self._working -= 1
                break
            self._begun += 1
            if call is not batch.last:
                self._answer(call, batch)
                continue
            with self._lock:
                self._taken += 1
            self._answer(call, batch)
            # With nothing behind it, this thread is at its end.
            if self._queue:
                self._wake()
        if self._answers or self._taken:
            self._wake()

    def _answer(self, call: _wire.BatchedCall, batch: _Batch) -> None:
        """Works on one call. On a thread."""
        configured = batch.configured
        try:
            if time.monotonic() > _deadline(call, batch.came):
                raise _late()
            subject = _wire.subject_of(call)
            context = self._context.copy()
            verdict = context.run(self._judgement.begin, subject, configured.config)
            if not isinstance(verdict, _VERDICTS) and inspect.isawaitable(verdict):
                self._call_on_loop(self._begin_awaitable, call, batch, subject, _Begun(verdict, context))
                return
            answer = self._judgement.encode(call.id, subject, verdict), configured.hash
        except CallError as error:
            answer = _wire.encode_failure(call.id, error), ""
        except BaseException:
            answer = _unanswered(call)
        self._answers.append(answer)

    def _watch_on(self) -> None:
        self._watching = self._loop.call_later(_PATIENCE, self._watch, self._begun)

    def _watch_off(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    def _watch(self, begun: int) -> None:
        """Brings in more threads when none of those at work has begun a call for a while, or when many wait."""
        self._watching = None
        if not self._working and not self._queue:
            return
        # What others do is no reason for the host to wait.
        self._flush()
        more = len(self._queue) if self._begun == begun else int(self._is_long())
        for _ in range(min(more, self._workers - self._working)):
            with self._lock:
                self._working += 1
            try:
                self._threads.submit(self._work)
            except RuntimeError:
                # There is no thread to be had just now. One that comes to be free finds this to do.
                break
        self._watch_on()

    def _is_long(self) -> bool:
        """Whether the call that is next has waited for long."""
        try:
            _, batch = self._queue[0]
        except IndexError:
            return False
        return self._loop.time() - batch.came > _LONG

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._call_on_loop(self._flush)

    def _call_on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            pass  # The loop is closed: nobody waits for the answer any more.

    # Coroutines.

    def _begin_coroutines(
        self, calls: Sequence[_wire.BatchedCall], configured: _wire.Configured, now: float
    ) -> Sequence[_wire.BatchedCall]:
        """Returns the calls that are none."""
        coroutines: deque[tuple[_wire.BatchedCall, Subject, _Begun | None]] = deque()
        rest = []
        for call in calls:
            try:
                subject = _wire.subject_of(call)
            except CallError as error:
                self._answers.append((_wire.encode_failure(call.id, error), ""))
                continue
            if self._judgement.is_async(subject):
                coroutines.append((call, subject, None))
            else:
                rest.append(call)
        if coroutines:
            likely, self._waited = self._waited + 1, 0
            self._carry_on(_Coroutines(configured, now, coroutines, not rest), likely)
        elif not rest:
            self._taken_on()
            self._flush_soon()
        return rest

    def _begin_awaitable(self, call: _wire.BatchedCall, batch: _Batch, subject: Subject, begun: _Begun) -> None:
        """One that a function has returned which is none itself."""
        calls: deque[tuple[_wire.BatchedCall, Subject, _Begun | None]] = deque([(call, subject, begun)])
        self._carry_on(_Coroutines(batch.configured, batch.came, calls, False), 1)

    async def _carry(self, batch: _Coroutines) -> None:
        """Begins calls one after the other, until there are none or one waits: then, this is the task of that one."""
        task = asyncio.current_task()
        assert task is not None
        batch.tasks -= 1
        until = time.monotonic() + _PATIENCE
        while batch.calls and not self._ended:
            call, subject, begun = batch.calls.popleft()
            context = copy_context() if begun is None else begun.context
            coroutine = self._finish(call, batch.configured, subject, begun)
            waits_for, waits = None, True
            try:
                waits_for = context.run(coroutine.send, None)
            except StopIteration:
                waits = False
            if batch.is_all and not batch.calls:
                self._taken_on()
            if waits:
                self._attend(task, _deadline(call, batch.came))
                self._waited += 1
                # With two for each one that waits, few turns of the loop are enough where all do.
                self._carry_on(batch, 2)
                self._flush_soon()
                await go_on(context, coroutine, waits_for)
                self._flush_soon()
                return
            if _is_cancelled(task):
                # By the call itself, which is over. It is no other one's concern.
                self._carry_on(batch, 1)
                self._flush_soon()
                return
            if batch.calls and time.monotonic() > until:
                # Others on the loop have their turn, and the host what there is.
                self._carry_on(batch, 1)
                break
        self._flush()

    def _carry_on(self, batch: _Coroutines, tasks: int) -> None:
        """Brings in so many more tasks, and none that would find nothing to do."""
        for _ in range(min(len(batch.calls) - batch.tasks, tasks)):
            batch.tasks += 1
            self._loop.create_task(self._carry(batch))

    async def _finish(
        self, call: _wire.BatchedCall, configured: _wire.Configured, subject: Subject, begun: _Begun | None
    ) -> None:
        try:
            try:
                if begun is None:
                    awaitable = self._judgement.begin(subject, configured.config)
                else:
                    awaitable = begun.awaitable
                verdict = await self._judgement.settle(subject, awaitable)
                answer = self._judgement.encode(call.id, subject, verdict), configured.hash
            except CallError as error:
                answer = _wire.encode_failure(call.id, error), ""
            except asyncio.CancelledError:
                answer = _wire.encode_failure(call.id, _late()), ""
            except Exception as error:
                answer = _wire.encode_failure(call.id, self._judgement.failed(subject, error)), ""
        except KeyboardInterrupt:
            raise  # Ends the process.
        except BaseException:
            answer = _unanswered(call)
        self._answers.append(answer)

    def _taken_on(self) -> None:
        with self._lock:
            self._taken += 1

    def _attend(self, task: asyncio.Task[None], deadline: float) -> None:
        """Sees to it that a task ends in time."""
        self._tasks[task] = self._loop.call_at(deadline, task.cancel)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task).cancel()

    # Answers.

    def _flush_soon(self) -> None:
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        # First: an answer that comes from here on wakes anew.
        self._woken = False
        if self._ended:
            return
        if not self._working:
            self._watch_off()
        while (self._answers or self._taken) and self._outlet.ready():
            with self._lock:
                taken, self._taken = self._taken, 0
            answers, config_hash = self._next_answers()
            self._open -= len(answers)
            self._outlet.send(_wire.encode_answers(answers, taken, config_hash))
        if self._stopped and not (self._open or self._taken or self._ended):
            self._ended = True
            self._outlet.finish()

    def _next_answers(self) -> tuple[list[bytes], str]:
        """What fits into one message, which has one configuration only, and the hash of that."""
        answers: list[bytes] = []
        size, config_hash = 0, ""
        while self._answers and size < _FULL:
            answer, hash = self._answers[0]
            if hash != config_hash:
                if hash and config_hash:
                    break
                config_hash = config_hash or hash
            answers.append(answer)
            self._answers.popleft()
            size += len(answer)
        return answers, config_hash


async def serve(make: Callable[[Outlet], Batches], context: Any, stopping: asyncio.Event) -> None:
    """Over a call of grpcio's: until the host ends it, or until the plugin stops and has answered."""
    outlet = _Queue()
    batches = make(outlet)

    async def read() -> None:
        while (data := await context.read()) is not grpc.aio.EOF:
            batches.take(data)

    async def write() -> None:
        while (message := await outlet.messages.get()) is not None:
            await context.write(message)
            outlet.is_ready = True
            batches.go_on()

    reading, writing = asyncio.create_task(read()), asyncio.create_task(write())
    stopped = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((reading, stopped, writing), return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            reading.result()
        reading.cancel()
        batches.finish()
        await writing
    finally:
        batches.end()
        for task in (reading, writing, stopped):
            task.cancel()


class _Queue:
    """An outlet of one message at a time."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.is_ready = True

    def ready(self) -> bool:
        return self.is_ready

    def send(self, message: bytes) -> None:
        self.is_ready = False
        self.messages.put_nowait(message)

    def finish(self) -> None:
        self.messages.put_nowait(None)


def _is_cancelled(task: asyncio.Task[None]) -> bool:
    """Whether the next thing that the task waits for is cancelled, in any version of Python."""
    return bool(getattr(task, "_must_cancel", True))


_VERDICTS = (Allow, Deny, Keep, Replace)


def _deadline(call: _wire.BatchedCall, came: float) -> float:
    return came + call.timeout_micros / 1_000_000


def _unanswered(call: _wire.BatchedCall) -> tuple[bytes, str]:
    """The last resort: what escaped all else must not take the calls behind this one with it."""
    return _wire.encode_failure(call.id, CallError("INTERNAL", "the call has come to nothing")), ""


def _late() -> CallError:
    # One of its own each time: an error that is raised again keeps the frames of every time before.
    return CallError("DEADLINE_EXCEEDED", "the host waits no longer")
