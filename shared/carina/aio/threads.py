"""Blocking work in a bounded pool of threads."""

import asyncio
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from carina.aio.finish import finish

P = ParamSpec("P")
T = TypeVar("T")

WORKERS: Final = 16


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(WORKERS, thread_name_prefix="carina")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a plain function in a thread.

    A thread can't be cancelled, so the call is awaited to its end even if the caller is cancelled meanwhile.
    """
    context = contextvars.copy_context()
    call = functools.partial(context.run, function, *args, **kwargs)

    async def wait() -> T:
        return await asyncio.get_running_loop().run_in_executor(_pool(), call)

    return await finish(wait())
