"""`Records`: the database together with what follows a commit: events to subscribers, a hint to the collector.

What follows is handed over after the commit and in the order of commits, even where the caller was cancelled meanwhile.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from carina.sqlite import Database
from carina.typed import TypedValue
from metadatad import eventlog
from metadatad.eventlog import Limits, Logged

T = TypeVar("T")


class Collector(Protocol):
    """What the stores need of the garbage collector."""

    def mutated(self, *, deletion: bool) -> None:
        """Records changed; with `deletion`, something may have become garbage. Called on the loop, returns at once."""

    async def collect(self) -> None:
        """Collect now, and return when the disk is clean of what went."""


class Deliver(Protocol):
    def __call__(self, logged: Sequence[Logged], /) -> None:
        """Pass events on to subscribers. Called on the loop, returns at once."""


class Transaction:
    """One write transaction, in the database's thread."""

    __slots__ = ("_limits", "connection", "deletion", "events")

    def __init__(self, connection: sqlite3.Connection, limits: Limits) -> None:
        self.connection = connection
        self.events: list[Logged] = []
        self.deletion = False
        """Set it where something may have become garbage."""
        self._limits = limits

    def emit(self, namespace: str, topic: str, event: TypedValue, *, time: datetime | None = None) -> None:
        """Write an event to the log; subscribers get it after the commit."""
        logged = eventlog.append(
            self.connection, self._limits, time=time, namespace=namespace, topic=topic, event=event
        )
        self.events.append(logged)


class Records:
    """Reads and writes of the metadata database, for every store of the service."""

    def __init__(self, database: Database, *, deliver: Deliver, limits: Limits | None = None) -> None:
        self.database = database
        self._deliver = deliver
        self._limits = limits or Limits()
        self._collector: Collector | None = None

    def attach(self, collector: Collector) -> None:
        """Tell this collector of changes from now on. (It needs the records itself, so it comes later.)"""
        self._collector = collector

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """See `Database.read`."""
        return await self.database.read(function)

    async def write(self, function: Callable[[Transaction], T]) -> T:
        """Run a function in a write transaction (`Database.write`), then deliver its events."""
        loop = asyncio.get_running_loop()
        transactions: list[Transaction] = []

        def run(connection: sqlite3.Connection) -> T:
            transaction = Transaction(connection, self._limits)
            transactions[:] = [transaction]
            return function(transaction)

        def committed(_: T) -> None:
            loop.call_soon_threadsafe(self._after, transactions[0])

        return await self.database.write(run, committed=committed)

    async def collect(self) -> None:
        """Collect garbage now, and return when the disk is clean."""
        if self._collector is not None:
            await self._collector.collect()

    def _after(self, transaction: Transaction) -> None:
        if transaction.events:
            self._deliver(transaction.events)
        if self._collector is not None:
            self._collector.mutated(deletion=transaction.deletion)
