"""Who may touch an object of a back end now: many that use it, or the one that deletes it.

A late deletion can't destroy what was made again meanwhile: a deletion that finds the object in use does not happen,
and whoever wants to use an object waits until its deletion is over.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Hashable

from carina.errors import Unavailable


class Claims:
    def __init__(self) -> None:
        self._users: Counter[Hashable] = Counter()
        self._deletions: dict[Hashable, asyncio.Event] = {}

    @contextlib.asynccontextmanager
    async def use(self, key: Hashable, *, seconds: float = 30.0) -> AsyncIterator[None]:
        """Keep an object from being deleted for the block.

        Raises:
            Unavailable: it is being deleted, and that does not end within `seconds`.
        """
        try:
            async with asyncio.timeout(seconds):
                while key in self._deletions:
                    await self._deletions[key].wait()
        except TimeoutError as error:
            raise Unavailable(f"{key} is being deleted, and that takes longer than {seconds:g} s") from error
        self._users[key] += 1
        try:
            yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]

    @contextlib.asynccontextmanager
    async def delete(self, key: Hashable) -> AsyncIterator[bool]:
        """Claim an object for its deletion; False where somebody uses it, and then it must not be deleted."""
        if key in self._deletions or self._users[key]:
            yield False
            return
        over = self._deletions[key] = asyncio.Event()
        try:
            yield True
        finally:
            del self._deletions[key]
            over.set()
