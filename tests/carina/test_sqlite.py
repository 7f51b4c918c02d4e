"""`carina.sqlite`: transactions are whole, durable, ordered and safe to cancel."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from carina.errors import DataLoss, FailedPrecondition, Internal, ResourceExhausted
from carina.sqlite import Database, open_database

SCRIPTS = ["CREATE TABLE t (k TEXT PRIMARY KEY, v INTEGER NOT NULL) STRICT;"]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(tmp_path / "db.sqlite", SCRIPTS) as opened:
        yield opened


def put(key: str, value: int) -> Callable[[sqlite3.Connection], str]:
    def function(c: sqlite3.Connection) -> str:
        c.execute("INSERT INTO t VALUES (?, ?)", (key, value))
        return key

    return function


def count(c: sqlite3.Connection) -> int:
    rows: int = c.execute("SELECT count(*) FROM t").fetchone()[0]
    return rows


async def test_durable_settings(database: Database) -> None:
    """The writer runs with WAL, full synchronisation and foreign keys."""

    def settings(c: sqlite3.Connection) -> list[object]:
        return [c.execute(f"PRAGMA {p}").fetchone()[0] for p in ("journal_mode", "synchronous", "foreign_keys")]

    assert await database.write(settings) == ["wal", 2, 1]
    assert await database.read(settings) == ["wal", 2, 1]


async def test_failed_function_is_undone_alone(database: Database) -> None:
    """Of functions committed together, one that raises leaves nothing and the others stay."""

    def fails(c: sqlite3.Connection) -> None:
        c.execute("INSERT INTO t VALUES ('bad', 1)")
        raise ValueError("no")

    results = await asyncio.gather(
        *(database.write(put(str(i), i)) for i in range(50)),
        database.write(fails),
        *(database.write(put(str(i), i)) for i in range(50, 100)),
        return_exceptions=True,
    )
    assert [r for r in results if isinstance(r, ValueError)] == [results[50]]
    assert await database.read(count) == 100


async def test_constraint_is_internal(database: Database) -> None:
    """A constraint that our own code breaks is an internal error, and the writer goes on."""
    await database.write(put("a", 1))
    with pytest.raises(Internal):
        await database.write(put("a", 2))
    await database.write(put("b", 2))
    assert await database.read(count) == 2


async def test_cancelled_writer_leaves_no_transaction(database: Database) -> None:
    """A caller cancelled in the middle leaves a whole transaction or none, and the next writer works."""

    def slow(c: sqlite3.Connection) -> None:
        c.execute("INSERT INTO t VALUES ('slow', 1)")
        time.sleep(0.05)
        c.execute("INSERT INTO t VALUES ('slower', 1)")

    task = asyncio.create_task(database.write(slow))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await database.write(put("next", 1))
    assert await database.read(count) == 3


async def test_committed_in_order(database: Database) -> None:
    """What is to follow a commit follows in the order of commits, and not after a rollback."""
    order: list[str] = []

    def fails(c: sqlite3.Connection) -> str:
        raise ValueError("no")

    await asyncio.gather(
        *(database.write(put(str(i), i), committed=order.append) for i in range(30)),
        database.write(fails, committed=order.append),
        return_exceptions=True,
    )
    assert order == [str(i) for i in range(30)]


async def test_reader_sees_one_moment(database: Database) -> None:
    """A reader's snapshot does not change under it, and it can't write."""

    def twice(c: sqlite3.Connection) -> tuple[int, int]:
        first = count(c)
        time.sleep(0.1)
        return first, count(c)

    reading = asyncio.create_task(database.read(twice))
    await asyncio.sleep(0.03)
    await database.write(put("a", 1))
    assert await reading == (0, 0)
    with pytest.raises(Exception, match="read-only"):
        await database.read(put("b", 1))


async def test_newer_schema_is_refused(tmp_path: Path) -> None:
    """A database that a newer version has used is refused with a sentence that says so."""
    path = tmp_path / "db.sqlite"
    async with open_database(path, [*SCRIPTS, "CREATE TABLE u (k TEXT);"]):
        pass
    with pytest.raises(FailedPrecondition, match="newer version"):
        async with open_database(path, SCRIPTS):
            pass


async def test_failed_migration_is_undone(tmp_path: Path) -> None:
    """A migration that fails leaves the database as it was before."""
    path = tmp_path / "db.sqlite"
    with pytest.raises(Internal):
        async with open_database(path, [*SCRIPTS, "CREATE TABLE u (k TEXT); CREATE NONSENSE;"]):
            pass
    async with open_database(path, SCRIPTS) as database:
        await database.write(put("a", 1))
        tables = await database.read(lambda c: c.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])
    assert tables == 2


async def test_one_owner(tmp_path: Path) -> None:
    """A database that is open can't be opened a second time."""
    async with open_database(tmp_path / "db.sqlite", SCRIPTS):
        with pytest.raises(FailedPrecondition, match="in use"):
            async with open_database(tmp_path / "db.sqlite", SCRIPTS):
                pass


async def test_damaged_file(tmp_path: Path) -> None:
    """A file that is no database is reported as damaged."""
    path = tmp_path / "db.sqlite"
    path.write_bytes(b"nonsense" * 1000)
    with pytest.raises(DataLoss, match="damaged"):
        async with open_database(path, SCRIPTS):
            pass


async def test_metadata_schema_applies(tmp_path: Path) -> None:
    """The metadata service's migrations apply to an empty database."""
    async with open_database(tmp_path / "db.sqlite", "metadatad") as database:
        assert await database.read(lambda c: c.execute("SELECT count(*) FROM edges").fetchone()[0]) == 0


async def test_full_disk(database: Database) -> None:
    """A transaction that finds the disk full fails as ResourceExhausted, leaves nothing, and the next one works."""
    pages: int = await database.write(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    await database.write(lambda c: c.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone())

    def large(c: sqlite3.Connection) -> None:
        c.execute("INSERT INTO t VALUES (?, 1)", ("x" * 100_000,))

    results = await asyncio.gather(
        database.write(put("before", 1)), database.write(large), database.write(put("after", 1)), return_exceptions=True
    )
    assert isinstance(results[1], ResourceExhausted)
    await database.write(put("next", 1))
    kept = 1 + sum(not isinstance(result, BaseException) for result in results)
    assert await database.read(count) == kept


async def test_writers_share_commits(database: Database) -> None:
    """Concurrent writers are committed in groups: far fewer commits than functions."""
    commits: list[str] = []

    def traced(c: sqlite3.Connection) -> None:
        c.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)

    await database.write(traced)
    await asyncio.gather(*(database.write(put(str(i), i)) for i in range(200)))
    await database.write(lambda c: c.set_trace_callback(None))
    assert await database.read(count) == 200
    assert len(commits) < 100
