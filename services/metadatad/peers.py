"""How a back end is called: with the namespace and lease that it wants, and never without a limit.

A back end that is known not to answer (`metadatad.breaker`) is not called where an answer is due at once: that fails.
Work is begun unless not even a probe was answered, and may go on for as long as it may last.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Final

from carina import context
from carina.errors import CarinaError, DeadlineExceeded, Unavailable
from metadatad.breaker import Breaker

EARLY: Final = 0.1
"""By how much a limit may be reached before its moment: timers count whole milliseconds, and clocks differ."""


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
    breaker: Breaker = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "breaker", Breaker(self.answer_seconds - EARLY))

    @contextlib.asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """Calls in the block are to be answered at once.

        Raises:
            Unavailable: they were not, or it is known that they would not be.
        """
        self.breaker.check(self.name, self.answer_seconds)
        async with self._within(self.answer_seconds, deadline=True):
            yield

    @contextlib.asynccontextmanager
    async def probing(self, seconds: float) -> AsyncIterator[None]:
        """Calls in the block are to find out whether the back end answers: they are made in any case."""
        begun = time.monotonic()
        try:
            async with self._within(seconds, deadline=True):
                yield
        finally:
            self.breaker.dead = self.breaker.last_answer < begun and time.monotonic() >= begun + seconds - EARLY

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Calls in the block last as long as their work; an earlier deadline of the caller stays.

        Raises:
            Unavailable: they were not answered, or it is known that they would not even be begun.
        """
        if self.breaker.dead:
            self.breaker.check(self.name, self.answer_seconds)
        async with self._within(self.work_seconds, deadline=True):
            yield

    @contextlib.asynccontextmanager
    async def listing(self) -> AsyncIterator[Callable[[], None]]:
        """The block goes through a list that comes as a stream, and calls the function with each item that came.

        Raises:
            Unavailable: none came for as long as an answer may take.
        """
        self.breaker.check(self.name, self.answer_seconds)
        call, loop = context.current(), asyncio.get_running_loop()
        with context.use(replace(call, namespace=self.namespace or call.namespace, lease=self.lease or None)):
            begun = time.monotonic()

            def came() -> None:
                nonlocal begun
                begun = time.monotonic()
                limit.reschedule(loop.time() + self.answer_seconds)

            try:
                async with asyncio.timeout(self.answer_seconds) as limit:
                    yield came
            except TimeoutError as error:
                self.breaker.unanswered(begun)
                raise Unavailable(f"{self.name} did not answer for {self.answer_seconds:.3g} s") from error
        self.breaker.answered()

    @contextlib.asynccontextmanager
    async def opening(self) -> AsyncIterator[None]:
        """The block opens a stream that outlives it: its opening is limited, the stream is not."""
        self.breaker.check(self.name, self.answer_seconds)
        async with self._within(self.answer_seconds, deadline=False):
            yield

    @contextlib.asynccontextmanager
    async def _within(self, seconds: float, *, deadline: bool) -> AsyncIterator[None]:
        call, begun = context.current(), time.monotonic()
        moment = begun + seconds
        if call.deadline is not None:
            moment = min(moment, call.deadline)
        mine = replace(
            call,
            namespace=self.namespace or call.namespace,
            lease=self.lease or None,
            deadline=moment if deadline else None,
        )
        limit = max(0.0, moment - begun)
        with context.use(mine):
            try:
                # A little later than the deadline that goes along with the call: its answer says more.
                async with asyncio.timeout(limit + 0.2):
                    yield
            except (TimeoutError, DeadlineExceeded) as error:
                if time.monotonic() < moment - EARLY:
                    raise
                self.breaker.unanswered(begun)
                raise Unavailable(f"{self.name} did not answer for {limit:.3g} s") from error
            except Unavailable:
                if time.monotonic() >= moment - EARLY:
                    self.breaker.unanswered(begun)
                raise
            except CarinaError:
                self.breaker.answered()
                raise
        self.breaker.answered()
