"""Reading a log of events across restarts of the service."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from carina.errors import Unavailable
from carina.events import Cursor, Edge, Entry, EventLog, Start

PATIENCE: Final = 300.0
_PAUSES: Final = (0.05, 2.0)


async def follow(
    log: EventLog,
    start: Start = Edge.NOW,
    filters: Sequence[str] = (),
    *,
    gaps: bool = False,
    patience: float = PATIENCE,
) -> AsyncIterator[Entry]:
    """Entries of the log without an end: when the service goes away, reading goes on after the last entry.

    Nothing is missed or given twice. Another process can go on from the cursor of the last entry.

    Raises:
        Unavailable: the service was not there at the beginning, or has been away for `patience` seconds.
        OutOfRange, FailedPrecondition, InvalidArgument: see `EventLog.read`.
    """
    place: Cursor | None = None
    pause, limit = _PAUSES[0], 0.0
    while True:
        try:
            async for entry in log.read(place or start, filters, gaps=gaps):
                repeated = entry.cursor == place and not entry.lost
                place, pause, limit = entry.cursor, _PAUSES[0], 0.0
                if not repeated:
                    yield entry
            return
        except Unavailable:
            limit = limit or time.monotonic() + patience
            if place is None or time.monotonic() > limit:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, _PAUSES[1])
