"""`Database`: writers queue up for one connection and share its fsync, readers each see one moment.

Concurrent writers are committed together: the thread takes what is queued, runs each function under a savepoint and
commits once. A function that fails is rolled back alone.
"""

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar, cast

import aiosqlite

from carina.errors import DataLoss, Internal
from carina.sqlite import faults, integrity, ownership
from carina.sqlite.migrations import apply, migrations

T = TypeVar("T")
log = logging.getLogger(__name__)

BUSY_SECONDS: Final = 5.0
"""How long a statement waits for a lock that another process holds (a backup, a shell)."""
CHECK_SECONDS: Final = 5.0
"""How long a database is checked when it is opened."""
GROUP: Final = 64
"""Write functions committed together at the most."""
RESERVE: Final = 1 << 20
"""Bytes of the write-ahead log that are there from the start: records can be deleted on a disk that is full."""
_PLENTY: Final = 8
"""Times the reserve that must be free for it to be taken."""
_PAGES: Final = 240
"""After so many pages of the log it is written into the database and begun anew, within the reserve."""


class _Connection(aiosqlite.Connection):
    """An aiosqlite connection that runs a plain function in its thread: one hop instead of one per statement."""

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        return cast(T, await self._execute(function, self._conn))  # type: ignore[no-untyped-call]  # private there

    async def __aenter__(self) -> Self:
        await self
        return self


class _Job(Generic[T]):
    """A write function on its way."""

    __slots__ = ("committed", "error", "function", "result")

    def __init__(self, function: Callable[[sqlite3.Connection], T], committed: Callable[[T], None] | None) -> None:
        self.function = function
        self.committed = committed
        self.result: T | None = None
        self.error: BaseException | None = None

    def run(self, connection: sqlite3.Connection) -> None:
        try:
            self.result = self.function(connection)
        except BaseException as error:
            self.error = error


class Database:
    """An open database. Made by `open_database`."""

    def __init__(self, path: Path, writer: _Connection, readers: Sequence[_Connection]) -> None:
        self.path = path
        self._writer = writer
        self._readers = readers
        self._reading = [0] * len(readers)
        self._queue: deque[_Job[Any]] = deque()

    async def write(
        self, function: Callable[[sqlite3.Connection], T], *, committed: Callable[[T], None] | None = None
    ) -> T:
        """Run a function in a write transaction: committed durably when it returns, rolled back when it raises.

        It must not commit, roll back or await. `committed` is called in the database's thread after the commit, in the
        order of commits, even where the caller has been cancelled meanwhile; so it only hands something over.
        A caller that is cancelled can't know whether the transaction happened.

        Raises:
            ResourceExhausted: the disk is full.
            Unavailable: the database can't be reached now.
            DataLoss: it is damaged.
        """
        job = _Job(function, committed)
        self._queue.append(job)
        # One drain is queued for each job, and each takes at least one: after its own drain a job is done for certain.
        await self._writer.run(self._drain)
        if job.error is not None:
            raise self._raised(job.error)
        return cast(T, job.result)

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function that only reads, in a snapshot that no writer changes under it. Raises as `write` does."""
        index = min(range(len(self._readers)), key=self._reading.__getitem__)
        self._reading[index] += 1
        try:
            return await self._readers[index].run(lambda connection: _in_snapshot(connection, function))
        except sqlite3.Error as error:
            raise self._raised(error) from error
        finally:
            self._reading[index] -= 1

    async def read_apart(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """As `read`, on a connection made for it: for a read that lasts, so that no other waits behind it.

        A caller that is cancelled interrupts it.
        """
        try:
            async with _connect(self.path) as connection:
                await connection.run(lambda raw: _configure(raw, read_only=True))
                try:
                    return await connection.run(lambda raw: _in_snapshot(raw, function))
                except BaseException:
                    await connection.interrupt()
                    raise
        except sqlite3.Error as error:
            raise self._raised(error) from error

    def _raised(self, error: BaseException) -> BaseException:
        if isinstance(error, sqlite3.Error):
            translated = faults.translated(error, str(self.path))
            translated.__cause__ = error
            return translated
        return error

    def _drain(self, connection: sqlite3.Connection) -> None:
        jobs: list[_Job[Any]] = []
        while self._queue and len(jobs) < GROUP:
            jobs.append(self._queue.popleft())
        if not jobs:
            return
        try:
            _transact(connection, jobs)
        except BaseException as error:
            for job in jobs:
                job.error = job.error or error
        for job in jobs:
            if job.error is None and job.committed is not None:
                job.committed(job.result)


def _in_snapshot(connection: sqlite3.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN")
    try:
        return function(connection)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _transact(connection: sqlite3.Connection, jobs: Sequence[_Job[Any]]) -> None:
    """Run the jobs and commit once; a job that fails is undone alone. Raises what hit all of them."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        for job in jobs:
            connection.execute("SAVEPOINT job")
            job.run(connection)
            if not connection.in_transaction:  # SQLite itself rolled everything back: disk full, I/O error
                raise job.error or Internal("a write function ended its transaction")
            if job.error is not None:
                connection.execute("ROLLBACK TO job")
            connection.execute("RELEASE job")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _claim(path: Path, claimed: list[int]) -> None:
    """Before SQLite makes a file where there is none."""
    claimed.append(ownership.claim(path))
    ownership.must_be_there(path, claimed[0])


def _release(claimed: list[int]) -> None:
    for descriptor in claimed:
        os.close(descriptor)


def _connect(path: Path) -> _Connection:
    def connector() -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS, cached_statements=256)

    return _Connection(connector, iter_chunk_size=64)


def _configure(connection: sqlite3.Connection, *, read_only: bool) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_PAGES}")
    if read_only:
        connection.execute("PRAGMA query_only = ON")


def _prepare(connection: sqlite3.Connection, schema: str | Sequence[str], name: str) -> None:
    _configure(connection, read_only=False)
    try:
        problems = integrity.quick(connection, seconds=CHECK_SECONDS)
    except integrity.Interrupted:
        problems = []
        log.warning("database %s is large: only a part was checked in %g s", name, CHECK_SECONDS)
    if problems:
        raise DataLoss(f"database {name} is damaged ({'; '.join(problems)})")
    apply(connection, migrations(schema) if isinstance(schema, str) else schema, name=name)
    _reserve(f"{name}-wal")


def _reserve(log_path: str) -> None:
    """Have room for the write-ahead log before the disk is full.

    Its frames then replace zeros, so that a commit adds no block to the file, and flushing it needs no journal of the
    file system. SQLite reads a log up to the first frame whose checksum doesn't follow (its file format, section 4).
    A disk that is nearly full is left alone.
    """
    with contextlib.suppress(OSError), open(log_path, "r+b", buffering=0) as file:
        size, disk = file.seek(0, os.SEEK_END), os.fstatvfs(file.fileno())
        if size < RESERVE and disk.f_bavail * disk.f_frsize > _PLENTY * RESERVE:
            file.write(bytes(RESERVE - size))


@contextlib.asynccontextmanager
async def open_database(path: Path, schema: str | Sequence[str], *, readers: int = 2) -> AsyncIterator[Database]:
    """Open a database, check it, bring its schema up to date, and close it at the end of the block.

    `schema` names the package whose `schema` folder holds the migrations, or is the scripts themselves.

    Raises:
        FailedPrecondition: another process has it open, or a newer version of the program has used it.
        DataLoss: it is damaged, or gone although there was one.
        Unavailable, ResourceExhausted: it can't be opened.
    """
    async with contextlib.AsyncExitStack() as stack:
        try:
            claimed: list[int] = []
            stack.callback(_release, claimed)
            await asyncio.to_thread(_claim, path, claimed)
            writer = await stack.enter_async_context(_connect(path))
            await writer.run(lambda connection: _prepare(connection, schema, str(path)))
            await writer.run(lambda connection: ownership.mark(path, claimed[0]))
            pool = [await stack.enter_async_context(_connect(path)) for _ in range(readers)]
            for reader in pool:
                await reader.run(lambda connection: _configure(connection, read_only=True))
        except sqlite3.Error as error:
            raise faults.translated(error, str(path)) from error
        yield Database(path, writer, pool)
