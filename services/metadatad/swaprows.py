"""Rows of back ends that were moved, of snapshots that stayed where they were, and what a move must not lose."""

import sqlite3
from collections.abc import Iterable
from typing import Final

from carina.backends import Backend
from carina.digest import Digest
from carina.sqlite import now
from carina.swap import Blob, Place, Snapshot
from metadatad import snaprows
from metadatad.columns import pack, unpack

NAMED: Final = 3
"""How many of the objects that are in the way are named."""
EXTRACTION: Final = "extract-"
"""How the keys of snapshots begin into which a layer is being unpacked, with containerd's clients and ours."""


def place_of(backend: Backend) -> Place:
    return Place(
        address=backend.address, namespace=backend.namespace, snapshotter=backend.snapshotter, lease=backend.lease
    )


def _packed(place: Place) -> str:
    fields = {
        "address": place.address,
        "namespace": place.namespace,
        "snapshotter": place.snapshotter,
        "lease": place.lease,
    }
    return pack({key: value for key, value in fields.items() if value})


def moved(connection: sqlite3.Connection) -> dict[tuple[str, str], tuple[Place, Place]]:
    """Type and name -> where a back end was moved to, and the configured place from which it was."""
    rows = connection.execute("SELECT type, name, place, home FROM swaps")
    return {(type, name): (Place(**unpack(place)), Place(**unpack(home))) for type, name, place, home in rows}


def move(connection: sqlite3.Connection, type: str, name: str, *, place: Place, home: Place) -> None:
    """Record where a back end is from now on; at home, nothing is recorded."""
    if place == home:
        forget(connection, type, name)
        return
    connection.execute(
        "INSERT OR REPLACE INTO swaps (type, name, place, home, created_at) VALUES (?, ?, ?, ?, ?)",
        (type, name, _packed(place), _packed(home), now()),
    )


def forget(connection: sqlite3.Connection, type: str, name: str) -> None:
    connection.execute("DELETE FROM swaps WHERE type = ? AND name = ?", (type, name))


def in_flight(connection: sqlite3.Connection, type: str, name: str) -> list[str]:
    """What is under way at a back end and would be cut by a move, in words."""
    if type == "content":
        query = "SELECT namespace, 'ingest', ref FROM ingests ORDER BY namespace, ref"
        rows = connection.execute(query).fetchall()
    else:
        query = (
            "SELECT namespace, action || ' of snapshot', key FROM intents WHERE snapshotter = ?1 UNION ALL "
            "SELECT namespace, 'unpacking into snapshot', key FROM snapshots "
            "WHERE snapshotter = ?1 AND kind = 2 AND substr(key, 1, 8) = ?2"
        )
        rows = connection.execute(query, (name, EXTRACTION)).fetchall()
    return [f"{noun} {key!r} of namespace {namespace}" for namespace, noun, key in rows]


def named(found: Iterable[str]) -> str:
    """The first of several things, and how many more there are."""
    items = list(found)
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return ", ".join(items[:NAMED]) + more


def blobs(connection: sqlite3.Connection) -> dict[str, Blob]:
    """Every blob that a namespace has, by its digest."""
    rows = connection.execute("SELECT digest, max(size) FROM blobs GROUP BY digest")
    return {digest: Blob(digest=Digest(digest), size=size) for digest, size in rows}


def committed(connection: sqlite3.Connection, snapshotter: str) -> dict[str, Snapshot]:
    """Every committed snapshot as its snapshotter knows it, by that name; parents before their children."""
    rows = connection.execute(
        "SELECT own.backend_key, coalesce(below.backend_key, ''), own.labels FROM snapshots own "
        "LEFT JOIN snapshots below ON below.namespace = own.namespace AND below.snapshotter = own.snapshotter "
        "AND below.key = own.parent WHERE own.snapshotter = ? AND own.kind = 3 ORDER BY own.created_at",
        (snapshotter,),
    )
    waiting: dict[str, list[Snapshot]] = {}
    known: dict[str, Snapshot] = {}
    for key, parent, stated in rows:
        one = Snapshot(name=key, parent=parent, labels=snaprows.inherited(unpack(stated)))
        ready = [one]
        if parent and parent not in known:
            waiting.setdefault(parent, []).append(one)
            continue
        while ready:
            one = ready.pop()
            known[one.name] = one
            ready += waiting.pop(one.name, [])
    return known | {one.name: one for orphans in waiting.values() for one in orphans}


def stayed(connection: sqlite3.Connection, snapshotter: str, *, old: Place, new: Place) -> dict[str, Place]:
    """Note that active snapshots and views stay where they are; what stayed at the new place is at home again."""
    rows = connection.execute("SELECT backend_key FROM snapshots WHERE snapshotter = ? AND kind != 3", (snapshotter,))
    before = stays(connection, snapshotter)
    # What is committed was just found at the new place.
    places = {key: before.get(key, old) for (key,) in rows}
    places = {key: place for key, place in places.items() if place != new}
    leave(connection, snapshotter, before)
    for key, place in places.items():
        stay(connection, snapshotter, [key], place)
    return places


def stays(connection: sqlite3.Connection, snapshotter: str) -> dict[str, Place]:
    """Back-end key -> place of what is not where its snapshotter is."""
    rows = connection.execute("SELECT backend_key, place FROM stays WHERE snapshotter = ?", (snapshotter,))
    return {key: Place(**unpack(place)) for key, place in rows}


def stay(connection: sqlite3.Connection, snapshotter: str, keys: Iterable[str], place: Place) -> None:
    packed = _packed(place)
    connection.executemany(
        "INSERT OR IGNORE INTO stays (snapshotter, backend_key, place) VALUES (?, ?, ?)",
        [(snapshotter, key, packed) for key in keys],
    )


def leave(connection: sqlite3.Connection, snapshotter: str, keys: Iterable[str]) -> None:
    connection.executemany(
        "DELETE FROM stays WHERE snapshotter = ? AND backend_key = ?", [(snapshotter, key) for key in keys]
    )


def tidy(connection: sqlite3.Connection) -> None:
    """Forget the places of snapshots that nothing knows any more."""
    connection.execute(
        "DELETE FROM stays WHERE NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.snapshotter = stays.snapshotter "
        "AND s.backend_key = stays.backend_key) AND NOT EXISTS (SELECT 1 FROM intents i WHERE "
        "i.snapshotter = stays.snapshotter) AND NOT EXISTS (SELECT 1 FROM tombstones t WHERE t.type = 'snapshot' "
        "AND t.backend = stays.snapshotter AND t.key = stays.backend_key)"
    )
