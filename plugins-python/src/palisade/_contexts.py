"""Coroutines in a context (`contextvars`) that is not their task's."""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, TypeVar

_T = TypeVar("_T")


async def await_in(context: Context, awaitable: Awaitable[_T]) -> _T:
    """Awaits it in a context, and in the task of the caller."""
    coroutine = _coroutine_of(awaitable)
    try:
        waits_for = context.run(coroutine.send, None)
    except StopIteration as end:
        value: _T = end.value
        return value
    return await go_on(context, coroutine, waits_for)


async def _coroutine_of(awaitable: Awaitable[_T]) -> _T:
    return await awaitable


@types.coroutine
def go_on(context: Context, coroutine: Coroutine[Any, Any, _T], waits_for: Any) -> Generator[Any, Any, _T]:
    """Awaits a coroutine that has had its first step, each further one in its own context, and not in the task's."""
    step: Callable[[Any], Any]
    while True:
        try:
            step, value = coroutine.send, (yield waits_for)
        except GeneratorExit:
            context.run(coroutine.close)
            raise
        except BaseException as error:
            step, value = coroutine.throw, error
        try:
            waits_for = context.run(step, value)
        except StopIteration as end:
            # If that was an exception, its traceback leads back here.
            value = None
            result: _T = end.value
            return result
