"""A backup in the place of the database, while no metadatad runs.

What the backup says of calls and removals that were under way is not believed: what they were about may be in use by
now. It is left as orphans, which a check lists.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from carina.errors import DataLoss, FailedPrecondition
from carina.sqlite import copies, faults, ownership

CLAIM_SECONDS: Final = 2.0
"""How long a metadatad is waited for that looks at the database and gives up."""
NUMBERS: Final = 1_000_000
"""Numbers for objects of back ends that may have been given out since the backup was made."""


@dataclass(frozen=True, slots=True)
class Restored:
    database: Path
    aside: Path | None
    """Where the database from before is now."""
    records: dict[str, int]
    """Number of records by table."""


def restore(database: Path, file: Path) -> Restored:
    """Put the backup `file` in the place of `database`, which is kept.

    Raises:
        NotFound: there is no such file.
        DataLoss: it is no backup of this service, or damaged.
        FailedPrecondition: the database is in use, or a newer version of the program made the backup.
        ResourceExhausted: there is no room for it.
    """
    with claimed(database) as lock:
        new = database.with_name(f"{database.name}.new-{os.urandom(4).hex()}")
        copies.take(file, new, "metadatad")
        try:
            records = _settled(new, file)
        except BaseException:
            copies.remove(new)
            raise
        aside = copies.set_aside(database)
        copies.put(new, database)
        ownership.mark(database, lock)
    return Restored(database, aside, records)


@contextlib.contextmanager
def claimed(database: Path) -> Iterator[int]:
    """Own the database for the block. Raises FailedPrecondition while a metadatad has it."""
    try:
        lock = ownership.claim(database, seconds=CLAIM_SECONDS)
    except FailedPrecondition as error:
        raise FailedPrecondition(f"{error}: stop it first, for example with `carina down`") from error
    try:
        yield lock
    finally:
        os.close(lock)


def _settled(new: Path, file: Path) -> dict[str, int]:
    try:
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM tombstones")
            connection.execute("DELETE FROM intents")
            skip_numbers(connection, 0)
            connection.execute("COMMIT")
            return {table: _count(connection, table) for table in ("namespaces", "images", "containers", "blobs")}
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise faults.translated(error, str(new)) from error
        raise DataLoss(f"{file} is not a backup of the metadata ({error})") from error


def skip_numbers(connection: sqlite3.Connection, highest: int) -> None:
    """Numbers are never given out twice, not even those that nobody remembers."""
    connection.execute(
        "INSERT INTO sequences (name, value) VALUES ('backend', ?1) "
        "ON CONFLICT (name) DO UPDATE SET value = max(value, ?2) + ?3",
        (highest + NUMBERS, highest, NUMBERS),
    )


def _count(connection: sqlite3.Connection, table: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 - names of ours
