"""How a back end is called: with the namespace and lease that it wants, and never without a limit."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from carina import context
from carina.errors import Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A back end as the other end of calls."""

    name: str
    """As it is called in errors: `content back end`, `snapshotter overlayfs`."""
    namespace: str = ""
    lease: str = ""
    answer_seconds: float = 10.0
    """For calls that only look something up."""
    work_seconds: float = 600.0
    """For calls that last as long as their work, where no progress can be seen."""

    @contextlib.asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """Calls in the block are to be answered at once."""
        async with self._within(self.answer_seconds, deadline=True):
            yield

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Calls in the block last as long as their work; an earlier deadline of the caller stays."""
        async with self._within(self.work_seconds, deadline=True):
            yield

    @contextlib.asynccontextmanager
    async def listing(self) -> AsyncIterator[Callable[[], None]]:
        """The block goes through a list that comes as a stream, and calls the function with each item that came.

        Raises:
            Unavailable: none came for as long as an answer may take.
        """
        call, loop = context.current(), asyncio.get_running_loop()
        with context.use(replace(call, namespace=self.namespace or call.namespace, lease=self.lease or None)):
            try:
                async with asyncio.timeout(self.answer_seconds) as limit:
                    yield lambda: limit.reschedule(loop.time() + self.answer_seconds)
            except TimeoutError as error:
                raise Unavailable(f"{self.name} did not answer for {self.answer_seconds:.3g} s") from error

    @contextlib.asynccontextmanager
    async def opening(self) -> AsyncIterator[None]:
        """The block opens a stream that outlives it: its opening is limited, the stream is not."""
        async with self._within(self.answer_seconds, deadline=False):
            yield

    @contextlib.asynccontextmanager
    async def _within(self, seconds: float, *, deadline: bool) -> AsyncIterator[None]:
        call = context.current()
        moment = time.monotonic() + seconds
        if call.deadline is not None:
            moment = min(moment, call.deadline)
        mine = replace(
            call,
            namespace=self.namespace or call.namespace,
            lease=self.lease or None,
            deadline=moment if deadline else None,
        )
        limit = max(0.0, moment - time.monotonic())
        with context.use(mine):
            try:
                # A little later than the deadline that goes along with the call: its answer says more.
                async with asyncio.timeout(limit + 0.2):
                    yield
            except TimeoutError as error:
                raise Unavailable(f"{self.name} did not answer for {limit:.3g} s") from error
