"""Objects that back ends are still to remove, and numbers for the objects that they are to make.

A tombstone is written in the transaction that removes a record, so a crash never loses it.
That of a snapshot whose making was given up, and of an ingest that somebody may be beginning, is kept for a while
when it is not there: it may come yet.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from carina.sqlite import now

AWAITED: Final = 24 * 3600 * 1_000_000
"""Microseconds for which a snapshot may be made by a call that was given up."""
AWAITED_INGEST: Final = 120 * 1_000_000
"""Microseconds for which an ingest may be begun by who was told its name."""
LATER: Final = 15 * 1_000_000
"""Microseconds until an ingest that should be gone is looked for."""
_SHORTEST: Final = 1_000_000
_LONGEST: Final = 3600 * 1_000_000


@dataclass(frozen=True, slots=True)
class Tombstone:
    id: int
    type: str
    """`content`, `ingest` or `snapshot`."""
    key: str
    size: int
    expected: str | None
    """Of an ingest: the blob that it became if the back end no longer has it."""
    created_at: int
    until: int
    """Until then it may come although it is not there."""


def backend_key(connection: sqlite3.Connection, namespace: str, key: str) -> str:
    """A name for the back end that was never used before: `<namespace>/<number>/<key>`, as containerd builds them."""
    row = connection.execute(
        "INSERT INTO sequences (name, value) VALUES ('backend', 1) "
        "ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value"
    ).fetchone()
    return f"{namespace}/{row[0]}/{key}"


def bury_content(connection: sqlite3.Connection, digest: str, size: int) -> bool:
    """Have the back end delete a blob, unless a namespace still has a record of it."""
    if content_needed(connection, digest):
        return False
    _bury(connection, "content", "", digest, size)
    return True


def bury_ingest(
    connection: sqlite3.Connection,
    backend_ref: str,
    expected: str | None,
    *,
    awaited: bool = False,
    later: bool = False,
) -> None:
    """Have the back end abort an ingest; where it is gone there, it has become the expected blob (`bury_content`).

    One that is `awaited` is about to be begun by somebody who does not know yet: it is looked for again.
    With `later` nothing is there now, as far as we know.
    """
    _bury(connection, "ingest", "", backend_ref, 0, expected)
    if awaited:
        _await(connection, "ingest", "", backend_ref, AWAITED_INGEST)
    if later:
        connection.execute(
            "UPDATE tombstones SET due = ? WHERE type = 'ingest' AND key = ?", (now() + LATER, backend_ref)
        )


def bury_snapshot(connection: sqlite3.Connection, snapshotter: str, key: str, *, awaited: bool = False) -> None:
    """Have the back end remove a snapshot, unless a record or an intent still needs it; also if it comes only later."""
    if not snapshot_needed(connection, snapshotter, key):
        _bury(connection, "snapshot", snapshotter, key, 0)
        if awaited:
            _await(connection, "snapshot", snapshotter, key, AWAITED)


def _await(connection: sqlite3.Connection, type: str, backend: str, key: str, time: int) -> None:
    connection.execute(
        "UPDATE tombstones SET until = ? WHERE type = ? AND backend = ? AND key = ?",
        (now() + time, type, backend, key),
    )


def look_later(connection: sqlite3.Connection, tombstone: Tombstone) -> None:
    """It is not there yet. The pauses grow with the time since it was given up."""
    moment = now()
    pause = min(max((moment - tombstone.created_at) // 4, _SHORTEST), _LONGEST)
    connection.execute("UPDATE tombstones SET due = ? WHERE id = ?", (moment + pause, tombstone.id))


def next_due(connection: sqlite3.Connection, moment: int) -> int | None:
    """When the next look is due that was not at that moment; None without one."""
    found: int | None = connection.execute("SELECT min(due) FROM tombstones WHERE due > ?", (moment,)).fetchone()[0]
    return found


def exhume(connection: sqlite3.Connection, type: str, backend: str, key: str) -> None:
    """A record refers to the object again."""
    connection.execute(
        "DELETE FROM tombstones WHERE type = ? AND backend = ? AND key = ?",
        (type, backend, key),
    )


def content_needed(connection: sqlite3.Connection, digest: str) -> bool:
    return (
        connection.execute(
            "SELECT 1 FROM blobs WHERE digest = ?1 UNION ALL "
            "SELECT 1 FROM ingests WHERE expected = ?1 AND shared LIMIT 1",
            (digest,),
        ).fetchone()
        is not None
    )


def ingest_needed(connection: sqlite3.Connection, backend_ref: str) -> bool:
    row = connection.execute("SELECT 1 FROM ingests WHERE backend_ref = ?", (backend_ref,)).fetchone()
    return row is not None


def snapshot_needed(connection: sqlite3.Connection, snapshotter: str, key: str) -> bool:
    return (
        connection.execute(
            "SELECT 1 FROM snapshots WHERE snapshotter = ?1 AND backend_key = ?2 UNION ALL "
            "SELECT 1 FROM intents WHERE snapshotter = ?1 AND backend_key = ?2 LIMIT 1",
            (snapshotter, key),
        ).fetchone()
        is not None
    )


def waiting(connection: sqlite3.Connection, types: Sequence[str], backend: str, limit: int) -> list[Tombstone]:
    """The oldest tombstones of a back end; snapshots were buried children first."""
    marks = ", ".join("?" for _ in types)
    rows = connection.execute(
        f"SELECT id, type, key, size, expected, created_at, until FROM tombstones WHERE type IN ({marks}) "  # noqa: S608
        "AND backend = ? AND due <= ? ORDER BY id LIMIT ?",
        (*types, backend, now(), limit),
    )
    return [Tombstone(*row) for row in rows]


def backends_waiting(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """(type, name) of every back end with something to remove; the name is empty for content."""
    rows = connection.execute(
        "SELECT DISTINCT CASE type WHEN 'snapshot' THEN 'snapshot' ELSE 'content' END, backend FROM tombstones "
        "WHERE due <= ?",
        (now(),),
    )
    return [(type, name) for type, name in rows]


def totals(connection: sqlite3.Connection) -> list[tuple[str, int, int]]:
    """Type (`content`, `ingest`, `snapshot/NAME`), number and bytes of what is there and still to be removed."""
    rows = connection.execute(
        "SELECT CASE type WHEN 'snapshot' THEN 'snapshot/' || backend ELSE type END AS kind, count(*), sum(size) "
        "FROM tombstones WHERE due <= ? GROUP BY kind ORDER BY kind",
        (now(),),
    )
    return [(kind, count, size) for kind, count, size in rows]


def drop(connection: sqlite3.Connection, ids: Iterable[int]) -> None:
    connection.executemany("DELETE FROM tombstones WHERE id = ?", [(id,) for id in ids])


def _bury(
    connection: sqlite3.Connection, type: str, backend: str, key: str, size: int, expected: str | None = None
) -> None:
    connection.execute(
        "INSERT OR IGNORE INTO tombstones (type, backend, key, size, expected, created_at) VALUES (?, ?, ?, ?, ?, ?)",
        (type, backend, key, size, expected, now()),
    )
