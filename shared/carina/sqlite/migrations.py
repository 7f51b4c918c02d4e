"""Numbered migrations: `0001.sql`, `0002.sql`, ... in a package's `schema` folder.

`PRAGMA user_version` is the number of the last one applied. Each is applied in a transaction of its own,
so that a process killed in between leaves the database as it was before or after a migration.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Final

from carina import faults
from carina.errors import FailedPrecondition, Internal

_NAME: Final = re.compile(r"(\d{4})\.sql")


def migrations(package: str) -> list[str]:
    """The scripts of a package's `schema` folder, in order, without gaps.

    Raises:
        Internal: a number is missing, or there is none at all.
    """
    found = {}
    for entry in files(package).joinpath("schema").iterdir():
        match = _NAME.fullmatch(entry.name)
        if match is not None:
            found[int(match[1])] = entry.read_text(encoding="utf-8")
    if not found or sorted(found) != list(range(1, len(found) + 1)):
        raise Internal(f"the migrations of {package} are not numbered from 0001 without gaps")
    return [found[number] for number in sorted(found)]


def apply(connection: sqlite3.Connection, scripts: Sequence[str], *, name: str) -> None:
    """Bring a database up to date.

    Raises:
        FailedPrecondition: a newer version of the program has written it.
    """
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(scripts):
        raise FailedPrecondition(
            f"database {name} has schema version {version}, and this program knows versions up to {len(scripts)}: "
            "a newer version has used it"
        )
    for number in range(version + 1, len(scripts) + 1):
        try:
            connection.execute("BEGIN IMMEDIATE")
            for statement in statements(scripts[number - 1]):
                connection.execute(statement)
                faults.point("sqlite.migration.step")
            connection.execute(f"PRAGMA user_version = {number}")
            faults.point("sqlite.migration.applied")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        faults.point("sqlite.migration.committed")


def statements(script: str) -> Iterator[str]:
    """The statements of a script, each with the comments before it."""
    statement = ""
    for part in re.split("(?<=;)", script):
        statement += part
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement
