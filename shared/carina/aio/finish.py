"""Cancellation that waits: a critical pair of steps is completed first."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from carina.errors import CarinaError

T = TypeVar("T")


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end even if the caller is cancelled meanwhile; the cancellation is then delivered.

    If `work` fails after the caller was cancelled, its error becomes the context of the cancellation.
    """
    task = asyncio.get_running_loop().create_task(work, name="finish")
    return await settle(task)


async def settle(future: "asyncio.Future[T]") -> T:
    """Wait for `future` whatever happens to the caller, then deliver the caller's cancellation if there was one."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return future.result()
    raise cancelled from (None if future.cancelled() else future.exception())


async def or_undo(work: Coroutine[Any, Any, T], undo: Callable[[T], Coroutine[Any, Any, object]]) -> T:
    """Run `work` to its end; if the caller was cancelled meanwhile, undo what it made, then deliver the cancellation.

    A call that is cut off may have happened or not: this is how to know.
    """
    task = asyncio.get_running_loop().create_task(work, name="work")
    try:
        return await settle(task)
    except asyncio.CancelledError:
        if not task.cancelled() and task.exception() is None:
            with contextlib.suppress(CarinaError):
                await finish(undo(task.result()))
        raise
