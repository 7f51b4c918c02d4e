"""One stream made of several ranges that are read at once, for connections that are each slow.

           given out            being read, each by a connection of its own
    |-------------------->|- - - >      |- - - >      |- - - - ->   |
    start                 at            piece         piece         end

What is read before its turn is kept in memory: at most `limit` pieces of `size` bytes.
A connection over `FAST` bytes a second is left alone: more of them would not make it faster.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from carina.errors import CarinaError

FAST: Final = 64 << 20
"""Bytes a second of one connection from which on it stays the only one."""
PATIENCE: Final = 0.1
"""Seconds of waiting for a connection before it is called slow."""
STRIDE: Final = 8
"""Pieces that a fast connection reads at once."""
MAX_MEMORY: Final = 64 << 20
"""Bytes that one stream keeps of what is read before its turn."""


@dataclass(slots=True, kw_only=True)
class Span:
    """A range of bytes."""

    start: int
    end: int
    """Moved to the end of everything by a source that gives no ranges, and so gives more than asked for."""


Read = Callable[[Span], AsyncGenerator[bytes, None]]
"""The bytes of a span, all of them, or an error."""


@dataclass(slots=True, kw_only=True)
class _Piece:
    span: Span
    chunks: deque[bytes] = field(default_factory=deque)
    failure: CarinaError | None = None
    done: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None

    def put(self, chunk: bytes) -> None:
        self.chunks.append(chunk)
        self.changed.set()

    async def chunk(self) -> bytes | None:
        """The next bytes; None at the end."""
        while not self.chunks:
            if self.failure:
                raise self.failure
            if self.done:
                return None
            self.changed.clear()
            await self.changed.wait()
        return self.chunks.popleft()


class Ahead:
    """Reads the bytes from `start` to `end`. `slots` are the connections that there may be, one of them ours."""

    def __init__(self, read: Read, span: Span, *, size: int, slots: asyncio.Semaphore) -> None:
        self._read = read
        self._span = span
        self._size = size
        self._slots = slots
        self._limit = max(1, MAX_MEMORY // size)
        self._pieces: deque[_Piece] = deque()
        self._next = span.start
        self._own = False
        """Whether our own connection is free."""
        self._waited = 0.0
        self._received = 0

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The bytes in their order. Raises what reading one of the ranges raises."""
        async with self._ending():
            while self._next < self._span.end or self._pieces:
                source = self._ahead(self._pieces[0]) if self._pieces else self._head()
                async with aclosing(source) as chunks:
                    async for chunk in chunks:
                        yield chunk

    async def _head(self) -> AsyncGenerator[bytes, None]:
        """The next range, given out as it arrives; if that is slow, those after it are begun."""
        size = self._size * (STRIDE if self._received else 1)
        span = Span(start=self._next, end=min(self._next + size, self._span.end))
        self._next, self._own = span.end, False
        async with aclosing(self._read(span)) as chunks:
            while True:
                began = time.monotonic()
                chunk = await anext(chunks, None)
                if chunk is None:
                    break
                self._waited += time.monotonic() - began
                self._received += len(chunk)
                self._next = max(self._next, span.end)
                if self._slow():
                    await self._begin()
                yield chunk
        self._own = True

    async def _ahead(self, piece: _Piece) -> AsyncGenerator[bytes, None]:
        while (chunk := await piece.chunk()) is not None:
            await self._begin()
            yield chunk
        self._pieces.popleft()
        await self._begin()

    def _slow(self) -> bool:
        return self._waited > PATIENCE and self._received < FAST * self._waited

    async def _begin(self) -> None:
        """Begin to read as many further pieces as connections are free, and memory allows. Does not wait."""
        while self._next < self._span.end and len(self._pieces) < self._limit:
            if self._own:
                self._own = False
                free = self._free
            elif not self._slots.locked():
                await self._slots.acquire()
                free = self._slots.release
            else:
                return
            piece = _Piece(span=Span(start=self._next, end=min(self._next + self._size, self._span.end)))
            self._next = piece.span.end
            piece.task = asyncio.create_task(self._fill(piece), name=f"read bytes from {piece.span.start}")
            piece.task.add_done_callback(partial(_call, free))
            self._pieces.append(piece)

    def _free(self) -> None:
        self._own = True

    async def _fill(self, piece: _Piece) -> None:
        try:
            async with aclosing(self._read(piece.span)) as chunks:
                async for chunk in chunks:
                    piece.put(chunk)
        except CarinaError as error:
            piece.failure = error
        finally:
            piece.done = True
            piece.changed.set()

    @contextlib.asynccontextmanager
    async def _ending(self) -> AsyncIterator[None]:
        """Nothing goes on being read after the block."""
        try:
            yield
        finally:
            tasks = [piece.task for piece in self._pieces if piece.task]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
                for task in tasks:
                    if not task.cancelled():
                        task.exception()


def _call(free: Callable[[], None], task: "asyncio.Task[None]") -> None:
    free()
