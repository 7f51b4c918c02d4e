"""Rows of the back ends that were added while the service ran."""

import sqlite3

from carina.backends import Backend
from carina.errors import AlreadyExists, FailedPrecondition
from carina.sqlite import now
from metadatad.columns import pack, unpack


def insert(connection: sqlite3.Connection, backend: Backend) -> None:
    """Raises AlreadyExists: a back end of that name was added before."""
    settings = {"namespace": backend.namespace, "snapshotter": backend.snapshotter, "lease": backend.lease}
    try:
        connection.execute(
            "INSERT INTO backends (name, type, address, settings, created_at) VALUES (?, ?, ?, ?, ?)",
            (backend.name, backend.type, backend.address, pack(settings), now()),
        )
    except sqlite3.IntegrityError as error:
        raise AlreadyExists(f"a back end {backend.name!r} is recorded already") from error


def delete(connection: sqlite3.Connection, type: str, name: str) -> None:
    """Raises FailedPrecondition: snapshots of the back end are recorded."""
    if type == "snapshot":
        row = connection.execute(
            "SELECT namespace, key FROM snapshots WHERE snapshotter = ?1 UNION ALL "
            "SELECT namespace, key FROM intents WHERE snapshotter = ?1 LIMIT 1",
            (name,),
        ).fetchone()
        if row is not None:
            raise FailedPrecondition(f"snapshotter {name!r} holds the snapshot {row[1]!r} of namespace {row[0]!r}")
        connection.execute("DELETE FROM tombstones WHERE type = 'snapshot' AND backend = ?", (name,))
    connection.execute("DELETE FROM backends WHERE type = ? AND name = ?", (type, name))


def all_of(connection: sqlite3.Connection) -> list[Backend]:
    rows = connection.execute("SELECT name, type, address, settings FROM backends ORDER BY name")
    result = []
    for name, type, address, stored in rows:
        settings = unpack(stored)
        result.append(
            Backend(
                name=name,
                type=type,
                address=address,
                namespace=settings.get("namespace", ""),
                snapshotter=settings.get("snapshotter", ""),
                lease=settings.get("lease", ""),
            )
        )
    return result
