"""Rows of the back ends that were added while the service ran, and what records need of any back end."""

import sqlite3
from typing import Final

from carina.backends import Backend
from carina.errors import AlreadyExists, FailedPrecondition
from carina.sqlite import now
from metadatad import snaprows
from metadatad.columns import pack, unpack

NAMED: Final = 3
"""How many of the objects that need a back end are named."""
_NEEDED: Final = {
    "snapshot": (
        ("snapshot", "SELECT namespace, key FROM snapshots WHERE snapshotter = ?"),
        ("snapshot under way", "SELECT namespace, key FROM intents WHERE snapshotter = ?"),
        ("container", "SELECT namespace, id FROM containers WHERE snapshotter = ?"),
    ),
    "sandbox": (("sandbox", "SELECT namespace, id FROM sandboxes WHERE sandboxer = ?"),),
}


def insert(connection: sqlite3.Connection, backend: Backend) -> None:
    """Raises AlreadyExists: a back end of that name was added before."""
    settings = {
        "namespace": backend.namespace,
        "snapshotter": backend.snapshotter,
        "lease": backend.lease,
        "platform": backend.platform,
    }
    stored = {
        **{key: value for key, value in settings.items() if value},
        **{f"export:{key}": f"={value}" for key, value in backend.exports.items()},
        **{f"capability:{capability}": "=" for capability in backend.capabilities},
    }
    try:
        connection.execute(
            "INSERT INTO backends (name, type, address, settings, created_at) VALUES (?, ?, ?, ?, ?)",
            (backend.name, backend.type, backend.address, pack(stored), now()),
        )
    except sqlite3.IntegrityError as error:
        raise AlreadyExists(f"a back end {backend.name!r} is recorded already") from error


def delete(connection: sqlite3.Connection, type: str, name: str) -> None:
    """Forget a back end, and what was to be removed there."""
    if type == "snapshot":
        connection.execute("DELETE FROM tombstones WHERE type = 'snapshot' AND backend = ?", (name,))
    connection.execute("DELETE FROM backends WHERE type = ? AND name = ?", (type, name))
    connection.execute("DELETE FROM swaps WHERE type = ? AND name = ?", (type, name))


def forget(connection: sqlite3.Connection, backend: Backend, *, force: bool) -> None:
    """Forget a back end that is taken out; with `force`, its snapshots as well.

    Raises:
        FailedPrecondition: records need it.
    """
    needed = dependents(connection, backend.type, backend.name)
    if needed and not force:
        raise FailedPrecondition(f"{backend.type} back end {backend.name!r} is needed: {needed}")
    if backend.type == "snapshot":
        forget_snapshots(connection, backend.name)
    delete(connection, backend.type, backend.name)


def dependents(connection: sqlite3.Connection, type: str, name: str) -> str:
    """Which records need a back end, in words; empty where none does."""
    found: list[str] = []
    count = 0
    for noun, query in _NEEDED.get(type, ()):
        rows = connection.execute(f"{query} LIMIT {NAMED}", (name,)).fetchall()
        found += [f"{noun} {key!r} of namespace {namespace}" for namespace, key in rows]
        count += connection.execute(f"SELECT count(*) FROM ({query})", (name,)).fetchone()[0]  # noqa: S608
    more = f" and {count - NAMED} more" if count > NAMED else ""
    return ", ".join(found[:NAMED]) + more


def forget_snapshots(connection: sqlite3.Connection, name: str) -> None:
    """Forget the records of a snapshotter that is gone for good."""
    rows = connection.execute("SELECT namespace, key FROM snapshots WHERE snapshotter = ?", (name,)).fetchall()
    for namespace, key in rows:
        snaprows.forget(connection, namespace, name, key)
    connection.execute("DELETE FROM intents WHERE snapshotter = ?", (name,))


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
                platform=settings.get("platform", ""),
                exports=_marked(settings, "export:"),
                capabilities=tuple(_marked(settings, "capability:")),
            )
        )
    return result


def _marked(settings: dict[str, str], mark: str) -> dict[str, str]:
    return {key.removeprefix(mark): value.removeprefix("=") for key, value in settings.items() if key.startswith(mark)}
