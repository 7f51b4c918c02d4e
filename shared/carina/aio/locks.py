"""One lock per key, with a deadline on taking it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Hashable

from carina.errors import Unavailable


class KeyedLock:
    """Mutual exclusion per key. A key takes memory only while somebody holds or waits for it."""

    def __init__(self, noun: str = "object") -> None:
        self._noun = noun
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def hold(self, key: Hashable, *, seconds: float = 30.0) -> AsyncIterator[None]:
        """Hold the key's lock for the block.

        Raises:
            Unavailable: somebody else held it for `seconds`.
        """
        lock, users = self._locks.get(key, (None, 0))
        lock = lock or asyncio.Lock()
        self._locks[key] = (lock, users + 1)
        try:
            try:
                async with asyncio.timeout(seconds):
                    await lock.acquire()
            except TimeoutError as error:
                raise Unavailable(f"{self._noun} {key} is locked: nobody let go of it for {seconds:g} s") from error
            try:
                yield
            finally:
                lock.release()
        finally:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)

    def locked(self, key: Hashable) -> bool:
        """Whether somebody holds the key's lock now."""
        return key in self._locks and self._locks[key][0].locked()
