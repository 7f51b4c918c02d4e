"""Whether a database's file is whole: plain functions that block, on a connection of their own."""

import sqlite3
import time
from pathlib import Path
from typing import Final

MOST: Final = 10
_STEP: Final = 10_000
"""Instructions of SQLite's machine between two looks at the clock."""


class Interrupted(Exception):
    """The time was over before everything was looked at."""


def problems(path: Path) -> list[str]:
    """What is wrong with the database at `path`: everything is looked at, indexes and foreign keys too."""
    try:
        connection = read_only(path)
    except sqlite3.Error as error:
        return [str(error)]
    try:
        found = [_line(row[0]) for row in connection.execute(f"PRAGMA integrity_check({MOST})") if row[0] != "ok"]
        broken = connection.execute("PRAGMA foreign_key_check").fetchmany(MOST)
        return found + [f"a row of {table} refers to no row of {other}" for table, _, other, _ in broken]
    except sqlite3.Error as error:
        return [str(error)]
    finally:
        connection.close()


def quick(connection: sqlite3.Connection, *, seconds: float) -> list[str]:
    """What a look at the pages finds wrong.

    Raises:
        Interrupted: it would take longer than `seconds`.
        sqlite3.Error: the file can't be read as a database at all.
    """
    limit = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > limit, _STEP)
    try:
        return [_line(row[0]) for row in connection.execute("PRAGMA quick_check(3)") if row[0] != "ok"]
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            raise Interrupted from error
        raise
    finally:
        connection.set_progress_handler(None, 0)


def _line(found: str) -> str:
    return " ".join(found.split())


def read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True, isolation_level=None, timeout=5.0)


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
