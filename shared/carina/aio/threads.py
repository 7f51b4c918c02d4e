"""Blocking work in threads. A thread can't be cancelled, so whoever started one waits for it."""

import asyncio
import contextvars
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from carina.aio.finish import settle

P = ParamSpec("P")
T = TypeVar("T")

SIZE: Final = max(8, min(32, 4 * (os.cpu_count() or 1)))


@functools.cache
def _pool(pid: int) -> ThreadPoolExecutor:
    """This process's threads; a forked child starts its own."""
    return ThreadPoolExecutor(SIZE, thread_name_prefix="carina")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in one of a bounded number of threads and wait for its end, even if the caller is cancelled.

    The cancellation is delivered afterwards. Context variables are those of the caller.
    """
    context = contextvars.copy_context()
    call = functools.partial(context.run, work, *args, **kwargs)
    return await settle(asyncio.get_running_loop().run_in_executor(_pool(os.getpid()), call))
