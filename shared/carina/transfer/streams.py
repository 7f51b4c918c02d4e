"""Streams beside a transfer: typed messages in both directions, found by namespace and id, bounded in number and depth.

A client opens a stream, then names it in a transfer: for progress, for credentials, for the bytes of an archive.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from carina.errors import AlreadyExists, InvalidArgument, NotFound, ResourceExhausted, Unavailable

MAX_STREAMS: Final = 1_000
MAX_ID_LENGTH: Final = 256
DEPTH: Final = 256
"""Messages that wait in one direction."""


@dataclass(frozen=True, slots=True)
class Item:
    """A message with the name of its type, as google.protobuf.Any has them."""

    type_url: str
    value: bytes

    @property
    def type(self) -> str:
        """The type's full name without what may precede it."""
        return self.type_url.rpartition("/")[2]


class Pipe:
    """One direction: bounded, closable, first in first out."""

    def __init__(self, depth: int = DEPTH) -> None:
        self._depth = depth
        self._items: deque[Item] = deque()
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """No more is put in; what is in can still be taken out."""
        self._closed = True
        self._changed.set()

    def offer(self, item: Item) -> bool:
        """Put in without waiting; False where there is no room, or it is closed."""
        if self._closed or len(self._items) >= self._depth:
            return False
        self._items.append(item)
        self._changed.set()
        return True

    async def put(self, item: Item) -> None:
        """Raises Unavailable when the other side is gone."""
        while not self.offer(item):
            if self._closed:
                raise Unavailable("the stream is closed")
            await self._wait()

    async def get(self) -> Item | None:
        """The next one; None when closed and empty."""
        while not self._items:
            if self._closed:
                return None
            await self._wait()
        item = self._items.popleft()
        self._changed.set()
        return item

    async def drained(self) -> None:
        """Returns when all that was put in has been taken out."""
        while self._items:
            await self._wait()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class Stream:
    """One client's stream as a service sees it."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.incoming = Pipe()
        self.outgoing = Pipe()

    def close(self) -> None:
        self.incoming.close()
        self.outgoing.close()


class Streams:
    """The open streams of all namespaces."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, str], Stream] = {}

    @contextlib.contextmanager
    def register(self, namespace: str, id: str) -> Iterator[Stream]:
        """A new stream, found until the block ends.

        Raises:
            AlreadyExists: the id is in use.
            ResourceExhausted: there are too many streams.
        """
        if not 0 < len(id) <= MAX_ID_LENGTH:
            raise InvalidArgument(f"stream id {id[:40]!r} must have 1 to {MAX_ID_LENGTH} characters")
        if (namespace, id) in self._streams:
            raise AlreadyExists(f"stream {id}: already exists")
        if len(self._streams) >= MAX_STREAMS:
            raise ResourceExhausted(f"stream {id}: {MAX_STREAMS} streams are open")
        stream = Stream(id)
        self._streams[namespace, id] = stream
        try:
            yield stream
        finally:
            stream.close()
            self._streams.pop((namespace, id), None)

    def get(self, namespace: str, id: str) -> Stream:
        """Raises NotFound."""
        try:
            return self._streams[namespace, id]
        except KeyError:
            raise NotFound(f"stream {id[:MAX_ID_LENGTH]}: not found") from None
