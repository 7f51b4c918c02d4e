"""Processes: the end of each is awaited once, however many ask for it."""

import asyncio
from dataclasses import dataclass, field

from carina.errors import CarinaError
from carina.tasks import Exit


def _future() -> "asyncio.Future[Exit]":
    future: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    # Nobody may be waiting when it fails.
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


@dataclass(slots=True, eq=False)
class Process:
    """A task's first process (empty `exec_id`) or one executed in it."""

    exec_id: str
    pid: int = 0
    """0 while it is not known."""
    adopted: bool = False
    """Whether it was there when taskd started."""
    ended: "asyncio.Future[Exit]" = field(default_factory=_future)

    def end(self, exit: Exit) -> None:
        if not self.ended.done():
            self.ended.set_result(exit)

    def fail(self, error: CarinaError) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)
