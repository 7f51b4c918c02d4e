"""Copies of whole databases: plain functions that block."""

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from carina.errors import DataLoss, FailedPrecondition, NotFound
from carina.sqlite import faults, integrity
from carina.sqlite.migrations import apply, migrations
from carina.sqlite.ownership import failed, sync_directory

PARTS: Final = ("", "-wal", "-shm", "-journal")
"""The files of a database."""


def copy(source: Path, target: Path) -> None:
    """Copy the database at `source`, as it is at one moment, into the new file `target`; writers go on meanwhile.

    Raises:
        ResourceExhausted: the disk is full; nothing is left of the copy.
        DataLoss: the source is damaged.
        Unavailable: it can't be read, or the copy can't be written.
    """
    _create(target)
    try:
        with (
            contextlib.closing(integrity.read_only(source)) as origin,
            contextlib.closing(sqlite3.connect(target, isolation_level=None)) as made,
        ):
            origin.backup(made)  # in one step: one moment
            made.execute("PRAGMA journal_mode = DELETE")
        _sync(target)
    except sqlite3.Error as error:
        remove(target)
        raise faults.translated(error, str(target)) from error
    except BaseException:
        remove(target)
        raise


def take(source: Path, target: Path, schema: str) -> None:
    """Copy the files of a database that nobody has open into the new file `target`, and prove that it is whole.

    It is brought up to date with the schema of the package `schema`.

    Raises:
        NotFound: there is no such file.
        DataLoss: it is no database, not one of this schema, or damaged.
        FailedPrecondition: a newer version of the program has written it.
    """
    if not source.is_file():
        raise NotFound(f"there is no file {source}")
    _create(target)
    try:
        for part in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{source}{part}", f"{target}{part}")
        with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as connection:
            _prove(connection, source, migrations(schema))
        _sync(target)
    except sqlite3.Error as error:
        remove(target)
        raise faults.translated(error, str(source)) from error
    except OSError as error:
        remove(target)
        raise failed(error, f"{source} can't be copied to {target}") from error
    except BaseException:
        remove(target)
        raise


def _prove(connection: sqlite3.Connection, source: Path, scripts: Sequence[str]) -> None:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version < 1:
        raise DataLoss(f"{source} is not a database of this service: it has no schema version")
    if version > len(scripts):
        raise FailedPrecondition(
            f"{source} has schema version {version}, and this program knows versions up to {len(scripts)}: "
            "a newer version has used it"
        )
    problems = [row[0] for row in connection.execute("PRAGMA integrity_check(3)") if row[0] != "ok"]
    if problems:
        raise DataLoss(f"{source} is damaged ({'; '.join(problems)})")
    apply(connection, scripts, name=str(source))
    connection.execute("PRAGMA journal_mode = DELETE")


def set_aside(path: Path) -> Path | None:
    """Rename a database out of the way, with what belongs to it; None where there is none."""
    aside = path.with_name(f"{path.name}.before-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.urandom(3).hex()}")
    found = False
    try:
        for part in PARTS:
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{path}{part}", f"{aside}{part}")
                found = found or not part
        sync_directory(path.parent)
    except OSError as error:
        raise failed(error, f"database {path} can't be put aside") from error
    return aside if found else None


def put(new: Path, path: Path) -> None:
    """Give a complete database its name."""
    try:
        os.rename(new, path)
        sync_directory(path.parent)
    except OSError as error:
        raise failed(error, f"{new} can't be renamed to {path}") from error


def remove(path: Path) -> None:
    for part in PARTS:
        with contextlib.suppress(OSError):
            os.unlink(f"{path}{part}")


def _create(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise failed(error, f"{path} can't be made") from error


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(path.parent)
    except OSError as error:
        raise failed(error, f"{path} can't be written") from error
