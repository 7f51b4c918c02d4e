"""The removal at one back end: at most one pass runs, and one more follows where it was asked for meanwhile."""

import asyncio
import contextlib
import time
from typing import Final

from metadatad.removal import Remover

STUCK_SECONDS: Final = 15.0
"""A removal that takes longer is not waited for by those who did not cause it."""
Backend = tuple[str, str]
"""`content` and an empty name, or `snapshot` and the snapshotter's name."""


class Passes:
    """Made for one remover."""

    def __init__(self, remover: Remover) -> None:
        self.remover = remover
        self.running = False
        self.idle = asyncio.Event()
        self.idle.set()
        self._requested = False
        self._clean = True
        self._begun = 0.0

    @property
    def stuck(self) -> bool:
        """Whether the last pass failed, or the present one takes long."""
        return not self._clean or (self.running and time.monotonic() - self._begun > STUCK_SECONDS)

    async def settled(self) -> None:
        """Wait until nothing is left to do, unless it is stuck, or as soon as it is."""
        while not self.idle.is_set() and not self.stuck:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STUCK_SECONDS):
                    await self.idle.wait()

    def request(self) -> None:
        self._requested = True
        self.idle.clear()

    async def work(self) -> bool:
        """Run passes until none is asked for; True if the back end is clean."""
        self._begun = time.monotonic()
        try:
            while self._requested:
                self._requested = False
                self._clean = await self.remover.run()
        finally:
            self.running = False
            self.idle.set()
        return self._clean


def backend_of(type: str) -> Backend:
    """Where an object of that type is removed."""
    kind, _, name = type.partition("/")
    return ("snapshot", name) if kind == "snapshot" else ("content", "")
