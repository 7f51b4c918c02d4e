"""What follows a commit: events and hints to the collector."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from carina.sqlite import open_database
from carina.typed import TypedValue
from metadatad import namespaces
from metadatad.eventlog import TRIM_EVERY, Limits, Logged
from metadatad.records import Records, Transaction
from support.metadata import CountingCollector

PAYLOAD = TypedValue("x", b"")


class Opened:
    def __init__(self, records: Records, delivered: list[Logged], collector: CountingCollector) -> None:
        self.records = records
        self.delivered = delivered
        self.collector = collector

    @property
    def topics(self) -> list[str]:
        return [logged.envelope.topic for logged in self.delivered]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    delivered: list[Logged] = []
    async with open_database(tmp_path / "metadata.sqlite", "metadatad") as database:
        records = Records(database, deliver=delivered.extend, limits=Limits(events=100))
        collector = CountingCollector()
        records.attach(collector)
        yield Opened(records, delivered, collector)


async def test_delivered_before_the_caller_goes_on(opened: Opened) -> None:
    """When a write returns, its events have been handed to the subscribers and the collector knows."""

    def change(transaction: Transaction) -> None:
        transaction.emit("ns", "/a", PAYLOAD)
        transaction.deletion = True

    await opened.records.write(change)
    assert opened.topics == ["/a"]
    assert (opened.collector.changes, opened.collector.deletions) == (1, 1)


async def test_nothing_follows_a_failure(opened: Opened) -> None:
    """A transaction that fails tells nobody, and nothing of it is in the log."""

    def fail(transaction: Transaction) -> None:
        transaction.emit("ns", "/a", PAYLOAD)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await opened.records.write(fail)
    logged = await opened.records.read(lambda c: c.execute("SELECT count(*) FROM events").fetchone()[0])
    assert (opened.topics, opened.collector.changes, logged) == ([], 0, 0)


async def test_cancelled_caller_does_not_lose_the_event(opened: Opened) -> None:
    """If a transaction was committed though its caller was cancelled, subscribers still hear of it."""

    entered, going = threading.Event(), threading.Event()

    def slow(transaction: Transaction) -> None:
        entered.set()
        assert going.wait(30)
        namespaces.ensure(transaction.connection, "ns")
        transaction.emit("ns", "/slow", PAYLOAD)

    task = asyncio.create_task(opened.records.write(slow))
    while not entered.is_set():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    going.set()
    await opened.records.write(lambda transaction: transaction.emit("ns", "/next", PAYLOAD))
    assert opened.topics == ["/slow", "/next"]


async def test_the_log_is_trimmed(opened: Opened) -> None:
    """The log keeps the newest events and does not grow without end."""

    def many(transaction: Transaction) -> None:
        for i in range(TRIM_EVERY * 2):
            transaction.emit("ns", f"/n/{i}", PAYLOAD)

    await opened.records.write(many)

    def ends(connection: sqlite3.Connection) -> tuple[int, str]:
        count: int = connection.execute("SELECT count(*) FROM events").fetchone()[0]
        last: str = connection.execute("SELECT topic FROM events ORDER BY sequence DESC LIMIT 1").fetchone()[0]
        return count, last

    assert await opened.records.read(ends) == (100, f"/n/{TRIM_EVERY * 2 - 1}")
