"""Calls the user's functions. Whatever goes wrong there is an error of the call, and never a verdict.

But a denial stays one, even if it can't be sent: an error in its place may let the request pass.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from . import _wire
from ._contexts import await_in
from ._errors import CallError
from ._request import Request, Response
from ._verdicts import Allow, Deny, Keep, Replace, Reply, ResponseVerdict, Verdict
from ._wire import Config, Configured

logger = logging.getLogger("palisade")

_MAX_DETAILS = 500

_MAX_ANSWER = 1024 * 1024 + 128 * 1024
"""Bytes of one answer in a batch: a reply of 1 MiB and its headers. A larger one would cost the whole stream."""

_NO_REPLY = Reply(0, (), b"")
"""That of a denial in place of one that is too large. As that one's, it can't be sent to a client, so the host refuses
the request by itself, whatever ``on_failure`` says."""

#: What a filter is asked about.
Subject = Request | Response


@dataclass(frozen=True)
class Handler:
    """One of the user's functions."""

    role: str
    function: Callable[..., Any]

    @classmethod
    def of(cls, role: str, function: Callable[..., Any], *parameters: str) -> Handler:
        """Raises TypeError when ``function`` cannot be called with these parameters."""
        handler = cls(role, function)
        try:
            inspect.signature(function).bind(*parameters)
        except TypeError:
            raise TypeError(f"{handler} must accept ({', '.join(parameters)})") from None
        except ValueError:
            pass  # A builtin without a signature: the first call will tell.
        return handler

    def __str__(self) -> str:
        return f"{self.role} `{getattr(self.function, '__name__', type(self.function).__name__)}`"

    @cached_property
    def is_async(self) -> bool:
        # An object's class may define an async __call__.
        call = getattr(self.function, "__call__", None)
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(call)

    async def call(self, pool: Executor, *arguments: object) -> Any:
        """Calls the function where it belongs."""
        return await self.settle(self._call(pool, *arguments))

    async def _call(self, pool: Executor, *arguments: object) -> Any:
        if self.is_async:
            return await self.function(*arguments)
        # The pool's threads have one context for all that they do. This is of this call alone.
        context, loop = copy_context(), asyncio.get_running_loop()
        outcome = await loop.run_in_executor(pool, context.run, _Outcome.of, self.function, arguments)
        if outcome.error is not None:
            raise outcome.error
        return await await_in(context, outcome.value) if inspect.isawaitable(outcome.value) else outcome.value

    async def settle(self, begun: Awaitable[Any]) -> Any:
        """Awaits what belongs to a call of the function, and makes plain errors of what would not end as one.

        SystemExit would end the event loop. A CancelledError that nobody asked for would leave the call unanswered, and
        so would what is no Exception: a panic in Rust, say.
        """
        try:
            return await begun
        except SystemExit as error:
            raise RuntimeError(f"{self} tried to exit the process") from error
        except asyncio.CancelledError as error:
            if _cancelled_by_others():
                raise
            raise RuntimeError(f"{self} cancelled itself") from error
        except (Exception, GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise RuntimeError(text_of(error)) from error


def _cancelled_by_others() -> bool:
    task = asyncio.current_task()
    # Python 3.10 cannot tell; there, the host's deadline ends the call of a function that cancels itself.
    return sys.version_info < (3, 11) or task is None or task.cancelling() > 0


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a function on a thread came to. As a value, because a future does not carry StopIteration."""

    value: Any = None
    error: BaseException | None = None

    @classmethod
    def of(cls, function: Callable[..., Any], arguments: Iterable[object]) -> _Outcome:
        try:
            return cls(value=function(*arguments))
        except BaseException as error:
            return cls(error=error)


class Judgement:
    """The filters of a plugin; a missing one lets everything pass."""

    def __init__(
        self,
        check: Handler | None,
        respond: Handler | None,
        pool: Executor,
        configured: Callable[[str], Configured],
    ) -> None:
        self._check = check
        self._respond = respond
        self._pool = pool
        self._configured = configured

    async def judge_request(self, request: Request, config: Config) -> Verdict:
        if self._check is None:
            return Allow()
        verdict = await self._ask(self._check, (request, config), request.id)
        if not isinstance(verdict, (Allow, Deny)):
            raise self._no_request_verdict(verdict, request.id)
        return verdict

    async def judge_response(self, response: Response, config: Config) -> ResponseVerdict:
        if self._respond is None:
            return Keep()
        verdict = await self._ask(self._respond, (response, config), response.request.id)
        if not isinstance(verdict, (Keep, Replace)):
            raise self._no_response_verdict(verdict, response.request.id)
        return verdict

    # What a batch needs.

    def configured(self, config_hash: str) -> Configured:
        """Raises CallError if another configuration is in force."""
        return self._configured(config_hash)

    def is_async(self, subject: Subject) -> bool:
        """Whether what `begin` returns is a coroutine, and to be called on the event loop."""
        handler = self._handler(subject)
        return handler is not None and handler.is_async

    @property
    def has_coroutines(self) -> bool:
        """Whether any function is one."""
        return any(handler is not None and handler.is_async for handler in (self._check, self._respond))

    def begin(self, subject: Subject, config: Config) -> Any:
        """Calls the function on this thread. Returns what it returns, which may be an awaitable."""
        handler = self._handler(subject)
        if handler is None:
            return Allow() if isinstance(subject, Request) else Keep()
        try:
            return handler.function(subject, config)
        except BaseException as error:
            raise self._raised(handler, error, _id_of(subject)) from None

    def settle(self, subject: Subject, begun: Awaitable[Any]) -> Awaitable[Any]:
        """What to await for what `begin` has returned, on the event loop."""
        handler = self._handler(subject)
        assert handler is not None
        return handler.settle(begun)

    def failed(self, subject: Subject, error: Exception) -> CallError:
        """What becomes of the call when that raises."""
        handler = self._handler(subject)
        assert handler is not None
        return self._raised(handler, error, _id_of(subject))

    def encode(self, id: int, subject: Subject, verdict: Any) -> bytes:
        """Raises CallError if it is no verdict, or too large a one that is no denial."""
        if isinstance(subject, Request):
            if not isinstance(verdict, (Allow, Deny)):
                raise self._no_request_verdict(verdict, subject.id)
        elif not isinstance(verdict, (Keep, Replace)):
            raise self._no_response_verdict(verdict, subject.request.id)
        answer = _wire.encode_answer(id, verdict)
        if len(answer) <= _MAX_ANSWER:
            return answer
        what = f"{self._handler(subject)} returned an answer of {len(answer)} bytes, at most {_MAX_ANSWER}"
        error = failure(what, request_id=_id_of(subject))
        if isinstance(verdict, (Deny, Replace)):
            return _wire.encode_answer(id, type(verdict)(_NO_REPLY))
        raise error

    def _handler(self, subject: Subject) -> Handler | None:
        return self._check if isinstance(subject, Request) else self._respond

    def _no_request_verdict(self, verdict: Any, request_id: str) -> CallError:
        what = f"{self._check} returned {type(verdict).__name__}, not allow() or deny()"
        return failure(what, request_id=request_id)

    def _no_response_verdict(self, verdict: Any, request_id: str) -> CallError:
        what = f"{self._respond} returned {type(verdict).__name__}, not keep() or replace()"
        return failure(what, request_id=request_id)

    async def _ask(self, handler: Handler, arguments: tuple[object, ...], request_id: str) -> Any:
        try:
            return await handler.call(self._pool, *arguments)
        except Exception as error:
            raise self._raised(handler, error, request_id) from None

    def _raised(self, handler: Handler, error: BaseException, request_id: str) -> CallError:
        return failure(f"{handler} raised {text_of(error)}", error, request_id)


def _id_of(subject: Subject) -> str:
    return subject.id if isinstance(subject, Request) else subject.request.id


def failure(message: str, error: BaseException | None = None, request_id: str = "") -> CallError:
    """Logs why a call fails. The host then does what ``on_failure`` says, and never takes it for an allow.

    Does not raise, whatever the program has made of its logging: the call would go without an answer.
    """
    try:
        try:
            logger.error("%s", message, exc_info=error, extra={"request_id": request_id} if request_id else None)
        except KeyError:
            # The program's record factory has set a "request_id" of its own.
            logger.error("%s", message, exc_info=error)
    except BaseException:
        pass
    return CallError("INTERNAL", message[:_MAX_DETAILS].encode("utf-8", "backslashreplace").decode())


def text_of(error: BaseException) -> str:
    """Does not raise, whatever the error's class makes of that."""
    name = type(error).__name__
    try:
        return f"{name}: {error}"
    except BaseException:
        return f"{name} (it has no text)"
