"""When to run the full mark, and what comes of it: at start-up after a crash or a migration, and at an interval.

What it finds beyond the candidates was missed by what notes those: it is said, counted and made a candidate.
"""

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable
from typing import Final

from carina.aio.finish import finish
from carina.errors import CarinaError
from carina.sqlite import now
from metadatad import candidates, fullmark
from metadatad.counters import Counters
from metadatad.fullmark import Marked
from metadatad.records import Records

RETRY_SECONDS: Final = 600.0
LONGEST_SLEEP: Final = 3600.0
NAMED: Final = 10
"""Objects named in the log."""

log = logging.getLogger(__name__)


class FullCheck:
    """It works while `serve` runs; `run` works at any time."""

    def __init__(self, records: Records, counters: Counters, *, interval: float, found: Callable[[], None]) -> None:
        self._records = records
        self._counters = counters
        self._interval = interval
        self._found = found
        self._turn = asyncio.Lock()
        self._first = False

    async def serve(self, delay: float) -> None:
        """Check when it is due, but not before `delay` is over, until cancelled; then note that this end is orderly."""
        due = await self._begin()
        try:
            await asyncio.sleep(delay)
            while True:
                pause = 0.0 if due else self._pause()
                if pause > 0:
                    await asyncio.sleep(min(pause, LONGEST_SLEEP))
                    continue
                try:
                    await self.run()
                    due = False
                except CarinaError as error:
                    log.warning("the full mark failed: %s", error)
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            with contextlib.suppress(CarinaError):
                await finish(self._records.database.write(_end))

    async def run(self) -> Marked:
        """Mark everything now; what was missed is a candidate afterwards."""
        async with self._turn:
            begun, moment = time.monotonic(), now()
            marked = await self._records.database.read_apart(lambda connection: fullmark.mark(connection, moment))
            await self._records.database.write(lambda connection: _record(connection, marked, moment))
            counters = self._counters
            counters.checks += 1
            counters.check_seconds += time.monotonic() - begun
            counters.checked_at = moment
            if marked.missed:
                self._tell(marked)
                self._found()
            self._first = False
            return marked

    def _tell(self, marked: Marked) -> None:
        names = ", ".join(f"{namespace}: {node}" for namespace, node in marked.missed[:NAMED])
        count = len(marked.missed)
        rest = f" and {count - NAMED} more" if count > NAMED else ""
        if self._first:
            log.info("the first full mark found %d objects that nothing keeps: %s%s", count, names, rest)
            return
        self._counters.missed += count
        log.warning("the full mark found %d objects that collections had missed: %s%s", count, names, rest)

    async def _begin(self) -> bool:
        """Whether a check is due at once."""
        values = await self._records.database.write(_begin)
        self._counters.checked_at = values.get("checked_at")
        self._first = bool(values.get("check_due"))
        return self._first or bool(values.get("running"))

    def _pause(self) -> float:
        if not self._interval:
            return LONGEST_SLEEP
        checked = self._counters.checked_at or 0
        return self._interval - max(now() - checked, 0) / 1e6


def _begin(connection: sqlite3.Connection) -> dict[str, int]:
    values = dict(connection.execute("SELECT name, value FROM collector").fetchall())
    _set(connection, "running", 1)
    return values


def _end(connection: sqlite3.Connection) -> None:
    _set(connection, "running", 0)


def _record(connection: sqlite3.Connection, marked: Marked, moment: int) -> None:
    candidates.note(connection, [(namespace, node, "missed", 0) for namespace, node in marked.missed])
    _set(connection, "checked_at", moment)
    _set(connection, "check_due", int(not marked.complete))


def _set(connection: sqlite3.Connection, name: str, value: int) -> None:
    connection.execute("INSERT OR REPLACE INTO collector (name, value) VALUES (?, ?)", (name, value))
