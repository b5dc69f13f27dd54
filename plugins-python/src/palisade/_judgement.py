"""Calls the user's functions. Whatever goes wrong there is an error of the call, and never a verdict."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from . import _wire
from ._errors import CallError
from ._request import Request, Response
from ._verdicts import Allow, Deny, Keep, Replace, ResponseVerdict, Verdict
from ._wire import Config, Configured

logger = logging.getLogger("palisade")

_MAX_DETAILS = 500


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
        """Calls the function where it belongs, and makes plain errors of what would not end as one.

        SystemExit would end the event loop. A CancelledError that nobody asked for would leave the call unanswered.
        """
        try:
            if self.is_async:
                return await self.function(*arguments)
            outcome = await asyncio.get_running_loop().run_in_executor(pool, _Outcome.of, self.function, arguments)
            if outcome.error is not None:
                raise outcome.error
            return await outcome.value if inspect.isawaitable(outcome.value) else outcome.value
        except SystemExit as error:
            raise RuntimeError(f"{self} tried to exit the process") from error
        except asyncio.CancelledError as error:
            if _cancelled_by_others():
                raise
            raise RuntimeError(f"{self} cancelled itself") from error


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
        return self._request_verdict(verdict, request.id)

    async def judge_response(self, response: Response, config: Config) -> ResponseVerdict:
        if self._respond is None:
            return Keep()
        verdict = await self._ask(self._respond, (response, config), response.request.id)
        return self._response_verdict(verdict, response.request.id)

    # What a batch needs.

    def configured(self, config_hash: str) -> Configured:
        """Raises CallError if another configuration is in force."""
        return self._configured(config_hash)

    def is_async(self, call: _wire.BatchedCall) -> bool:
        """Whether `judge` is for this call, and not `judge_now`."""
        handler = self._respond if call.asks_response else self._check
        return handler is not None and handler.is_async

    def judge_now(self, call: _wire.BatchedCall) -> Any:
        """Runs the function on this thread. Returns what it returns, which may be an awaitable."""
        handler, arguments, request_id = self._call(call)
        if handler is None:
            return Keep() if call.asks_response else Allow()
        outcome = _Outcome.of(handler.function, arguments)
        if outcome.error is not None:
            raise self._raised(handler, outcome.error, request_id)
        return outcome.value

    async def judge(self, call: _wire.BatchedCall) -> Any:
        """Runs the function on the event loop."""
        handler, arguments, request_id = self._call(call)
        assert handler is not None
        return await self._ask(handler, arguments, request_id)

    def answer(self, call: _wire.BatchedCall, verdict: Any) -> _wire.BatchedAnswer:
        """Raises CallError if it is no verdict."""
        if call.asks_response:
            answer = _wire.response_answer(call.id, self._response_verdict(verdict, ""))
        else:
            answer = _wire.request_answer(call.id, self._request_verdict(verdict, ""))
        if call.configured is not None:
            answer.config_hash = call.configured.hash
        return answer

    def _call(self, call: _wire.BatchedCall) -> tuple[Handler | None, tuple[object, ...], str]:
        if not call.is_known:
            raise CallError("UNIMPLEMENTED", "a call that this plugin does not know")
        # Not the one that is in force now: it may be another one by the time that a thread has come to the call.
        assert call.configured is not None
        config = call.configured.config
        if call.asks_response:
            response = call.response()
            return self._respond, (response, config), response.request.id
        request = call.request()
        return self._check, (request, config), request.id

    def _request_verdict(self, verdict: Any, request_id: str) -> Verdict:
        if isinstance(verdict, (Allow, Deny)):
            return verdict
        raise failure(f"{self._check} returned {type(verdict).__name__}, not allow() or deny()", request_id=request_id)

    def _response_verdict(self, verdict: Any, request_id: str) -> ResponseVerdict:
        if isinstance(verdict, (Keep, Replace)):
            return verdict
        raise failure(f"{self._respond} returned {type(verdict).__name__}, not keep() or replace()", request_id=request_id)

    async def _ask(self, handler: Handler, arguments: tuple[object, ...], request_id: str) -> Any:
        try:
            return await handler.call(self._pool, *arguments)
        except Exception as error:
            raise self._raised(handler, error, request_id) from None

    def _raised(self, handler: Handler, error: BaseException, request_id: str) -> CallError:
        return failure(f"{handler} raised {text_of(error)}", error, request_id)


def failure(message: str, error: BaseException | None = None, request_id: str = "") -> CallError:
    """Logs why a call fails. The host then does what ``on_failure`` says, and never takes it for an allow."""
    logger.error("%s", message, exc_info=error, extra={"request_id": request_id} if request_id else None)
    return CallError("INTERNAL", message[:_MAX_DETAILS].encode("utf-8", "backslashreplace").decode())


def text_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
