"""Locks by name, each held as briefly as the work on one object takes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Hashable
from dataclasses import dataclass, field

from carina.errors import Unavailable


@dataclass(slots=True)
class _Entry:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class KeyedLock:
    """A lock for each key. Keys that nobody holds or waits for take no memory. Waiters are served in their order."""

    def __init__(self, noun: str = "object") -> None:
        self._noun = noun
        self._entries: dict[Hashable, _Entry] = {}

    def __len__(self) -> int:
        """Number of keys held or waited for."""
        return len(self._entries)

    def locked(self, key: Hashable) -> bool:
        entry = self._entries.get(key)
        return entry is not None and entry.lock.locked()

    @contextlib.asynccontextmanager
    async def hold(self, key: Hashable, *, seconds: float = 30.0) -> AsyncIterator[None]:
        """Hold the key's lock during the block.

        Raises:
            Unavailable: others held it for `seconds`.
        """
        entry = self._entries.setdefault(key, _Entry())
        entry.users += 1
        try:
            await self._acquire(entry.lock, key, seconds)
            try:
                yield
            finally:
                entry.lock.release()
        finally:
            entry.users -= 1
            if not entry.users:
                del self._entries[key]

    async def _acquire(self, lock: asyncio.Lock, key: Hashable, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await lock.acquire()
        except TimeoutError:
            raise Unavailable(f"{self._noun} {key} is locked: nobody let go of it for {seconds:g} s") from None
