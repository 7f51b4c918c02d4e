"""Flushing directories together: callers that wait for the same directory share one fsync."""

import asyncio

from carina.aio.threads import in_thread
from contentd import files


class Flush:
    """A caller returns after a flush that began after its call: sixty-four commits at once need two or three."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._asked: dict[str, int] = {}
        self._done: dict[str, int] = {}

    async def directory(self, path: str) -> None:
        """Make the names in a directory durable. The store has a handful of directories, so nothing is forgotten."""
        mine = self._asked[path] = self._asked.get(path, 0) + 1
        async with self._locks.setdefault(path, asyncio.Lock()):
            if self._done.get(path, 0) >= mine:
                return
            covers = self._asked[path]
            await in_thread(files.flush_directory, path)
            self._done[path] = covers
