"""What a damaged database still tells: its rows are read from both ends, up to where it is damaged.

Every value is judged before it is believed: a damaged page may hold anything.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from carina import context
from carina.digest import Digest
from carina.errors import CarinaError
from carina.sqlite import integrity
from metadatad.columns import MAX_NAME, unpack, unpack_values

TABLES: Final = (
    "namespaces",
    "images",
    "containers",
    "sandboxes",
    "leases",
    "lease_resources",
    "blobs",
    "snapshots",
    "backends",
    "swaps",
    "stays",
)
"""In the order in which they are put back: what others refer to comes first."""
Row = dict[str, Any]


def rows(path: Path, table: str) -> Iterator[Row]:
    """The rows of a table that can be read and may be true; some come twice."""
    try:
        connection = integrity.read_only(path)
    except sqlite3.Error:
        return
    with contextlib.closing(connection):
        connection.row_factory = sqlite3.Row
        for order in ("ASC", "DESC"):
            yield from (dict(row) for row in _readable(connection, table, order) if _credible(table, row))
            if not _broken(connection, table):
                return


def _readable(connection: sqlite3.Connection, table: str, order: str) -> Iterator[sqlite3.Row]:
    try:
        first = connection.execute(f"SELECT name FROM pragma_table_info('{table}') LIMIT 1").fetchone()  # noqa: S608
        if first is None:
            return
        yield from connection.execute(f"SELECT * FROM {table} ORDER BY {first[0]} {order}")  # noqa: S608
    except (sqlite3.Error, UnicodeDecodeError):
        return


def _broken(connection: sqlite3.Connection, table: str) -> bool:
    try:
        connection.execute(f"SELECT count(*) FROM (SELECT * FROM {table})").fetchone()  # noqa: S608
    except sqlite3.Error:
        return True
    return False


def _credible(table: str, row: sqlite3.Row) -> bool:
    try:
        _judge(table, dict(row))
    except (CarinaError, ValueError, TypeError, KeyError):
        return False
    return True


def _judge(table: str, row: Row) -> None:
    if "namespace" in row:
        context.validate_identifier(row["namespace"], "namespace")
    if table == "namespaces":
        context.validate_identifier(row["name"], "namespace")
    if table in ("images", "blobs"):
        Digest(row["digest"])
        if not isinstance(row["size"], int) or row["size"] < 0:
            raise ValueError("size")
    if table == "containers":
        context.validate_identifier(row["id"], "container")
    for column in ("labels", "annotations"):
        if column in row:
            unpack(row[column])
    if "extensions" in row:
        unpack_values(row["extensions"])
    for column in ("name", "id", "key", "ref", "backend_key"):
        if column in row and not (0 < len(str(row[column]).encode()) <= MAX_NAME + 200):
            raise ValueError(column)
