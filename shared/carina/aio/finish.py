"""Cancellation that waits: a critical pair of steps is completed first."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

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
