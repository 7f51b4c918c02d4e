"""Rows of snapshots and of the calls to snapshotters that are under way (intents).

prepare, view    intent -> back end -> record                what failed half-way is removed from the back end
commit           intent -> back end -> record under its name    what is unknown is asked: `settle`
"""

import contextlib
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from carina import labels
from carina.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from carina.leases import Resource
from carina.snapshots import Info, Kind
from carina.sqlite import now, to_time
from metadatad import edges, leases, namespaces, rpc, tombstones
from metadatad.columns import pack, unpack
from metadatad.records import Transaction

_COLUMNS: Final = "key, backend_key, kind, parent, labels, created_at, updated_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A snapshot's record: what clients see, and how the back end calls it."""

    info: Info
    backend_key: str


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """A call to a snapshotter that is under way."""

    namespace: str
    snapshotter: str
    action: str
    """`prepare`, `view` or `commit`."""
    key: str
    """Of the snapshot that the call makes."""
    backend_key: str
    parent: str = ""
    backend_parent: str = ""
    source: str = ""
    """With commit: the key of the active snapshot."""
    backend_source: str = ""
    rebase: bool = False
    labels: dict[str, str] = {}
    lease: str | None = None
    id: int = 0

    def is_committed_as(self, made: Info) -> bool:
        """Whether the back end has made the commit that was asked for: one that can't rebase leaves the parent out."""
        return not self.rebase or made.parent == self.backend_parent


def inherited(given: Mapping[str, str]) -> dict[str, str]:
    """The labels that a snapshotter is told, as in containerd; the others are the metadata's business."""
    return {
        key: value
        for key, value in given.items()
        if key == labels.SNAPSHOT_REF or key.startswith(labels.SNAPSHOT_PREFIX)
    }


def find(connection: sqlite3.Connection, namespace: str, snapshotter: str, key: str) -> Row | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM snapshots WHERE namespace = ? AND snapshotter = ? AND key = ?",  # noqa: S608
        (namespace, snapshotter, key),
    ).fetchone()
    return None if row is None else _row(row)


def get(connection: sqlite3.Connection, namespace: str, snapshotter: str, key: str) -> Row:
    row = find(connection, namespace, snapshotter, key)
    if row is None:
        raise NotFound(f"snapshot {key!r} does not exist")
    return row


def all_of(connection: sqlite3.Connection, namespace: str, snapshotter: str) -> list[Row]:
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM snapshots WHERE namespace = ? AND snapshotter = ? ORDER BY key",  # noqa: S608
        (namespace, snapshotter),
    )
    return [_row(row) for row in rows]


def insert(transaction: Transaction, namespace: str, snapshotter: str, row: Row) -> None:
    """Write a snapshot's record, with its edges."""
    connection, info = transaction.connection, row.info
    namespaces.ensure(connection, namespace)
    tombstones.exhume(connection, "snapshot", snapshotter, row.backend_key)
    created = now()
    connection.execute(
        "INSERT INTO snapshots (namespace, snapshotter, key, backend_key, kind, parent, labels, created_at, updated_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            namespace,
            snapshotter,
            info.name,
            row.backend_key,
            info.kind.value,
            info.parent,
            pack(info.labels),
            created,
            created,
        ),
    )
    _state(connection, namespace, snapshotter, info.name, parent=info.parent, stated=info.labels)


def relabel(transaction: Transaction, namespace: str, snapshotter: str, *, new: Info, fields: list[str]) -> Row:
    connection = transaction.connection
    old = get(connection, namespace, snapshotter, new.name).info
    changed = labels.changed(old.labels, new.labels, fields)
    labels.validate(changed)
    connection.execute(
        "UPDATE snapshots SET labels = ?, updated_at = ? WHERE namespace = ? AND snapshotter = ? AND key = ?",
        (pack(changed), now(), namespace, snapshotter, new.name),
    )
    _state(connection, namespace, snapshotter, new.name, parent=old.parent, stated=changed)
    transaction.deletion = edges.weaker(edges.snapshot(snapshotter, new.name), old.labels, changed)
    return get(connection, namespace, snapshotter, new.name)


def discard(connection: sqlite3.Connection, namespace: str, snapshotter: str, key: str) -> None:
    """Remove a snapshot's record with what it states, and have the back end remove the snapshot."""
    row = find(connection, namespace, snapshotter, key)
    if row is None:
        return
    forget(connection, namespace, snapshotter, key)
    tombstones.bury_snapshot(connection, snapshotter, row.backend_key)


def forget(connection: sqlite3.Connection, namespace: str, snapshotter: str, key: str) -> None:
    """Remove a snapshot's record with what it states; the back end keeps what it has."""
    connection.execute(
        "DELETE FROM snapshots WHERE namespace = ? AND snapshotter = ? AND key = ?", (namespace, snapshotter, key)
    )
    edges.forget(connection, namespace, edges.snapshot(snapshotter, key))


def must_be_free(connection: sqlite3.Connection, namespace: str, snapshotter: str, key: str) -> None:
    """Raises FailedPrecondition while snapshots stand on this one, or are about to."""
    child = connection.execute(
        "SELECT key FROM snapshots WHERE namespace = ?1 AND snapshotter = ?2 AND parent = ?3 UNION ALL "
        "SELECT key FROM intents WHERE namespace = ?1 AND snapshotter = ?2 AND details ->> 'parent' = ?3 LIMIT 1",
        (namespace, snapshotter, key),
    ).fetchone()
    if child is not None:
        raise FailedPrecondition(f"snapshot {key!r} can't be removed: {child[0]!r} stands on it")


def hold(connection: sqlite3.Connection, intent: Intent, key: str) -> None:
    """Give a snapshot to the call's lease."""
    resource = Resource(type=f"snapshots/{intent.snapshotter}", id=key)
    leases.hold(connection, intent.namespace, intent.lease, resource)


def release(connection: sqlite3.Connection, namespace: str, lease: str | None, resource: Resource) -> None:
    with contextlib.suppress(NotFound):  # the lease has gone meanwhile
        leases.release(connection, namespace, lease, resource)


def begin_create(transaction: Transaction, intent: Intent) -> Intent | AlreadyExists:
    """Write the intent of a prepare or view, unless its key or its target is there: that is held by the lease then."""
    connection = transaction.connection
    target = intent.labels.get(labels.SNAPSHOT_REF, "")
    for name in filter(None, (target, intent.key)):
        if find(connection, intent.namespace, intent.snapshotter, name) is not None:
            hold(connection, intent, name)
            return AlreadyExists(f"snapshot {name!r} already exists")
    backend_parent = ""
    if intent.parent:
        parent = get(connection, intent.namespace, intent.snapshotter, intent.parent)
        if parent.info.kind is not Kind.COMMITTED:
            raise InvalidArgument(f"parent {intent.parent!r} is not a committed snapshot")
        backend_parent = parent.backend_key
    hold(connection, intent, intent.key)
    return _write_intent(connection, msgspec.structs.replace(intent, backend_parent=backend_parent))


def begin_commit(transaction: Transaction, intent: Intent) -> Intent | AlreadyExists:
    """Write the intent of a commit, unless its name is taken: that is held by the lease then."""
    connection = transaction.connection
    if find(connection, intent.namespace, intent.snapshotter, intent.key) is not None:
        hold(connection, intent, intent.key)
        return AlreadyExists(f"snapshot {intent.key!r} already exists")
    source = get(connection, intent.namespace, intent.snapshotter, intent.source)
    if source.info.kind is not Kind.ACTIVE:
        raise FailedPrecondition(f"snapshot {intent.source!r} is not active")
    if intent.parent and source.info.parent not in ("", intent.parent):
        raise InvalidArgument(f"snapshot {intent.source!r} stands on {source.info.parent!r}, not on {intent.parent!r}")
    hold(connection, intent, intent.key)
    rebase = bool(intent.parent) and not source.info.parent
    parent = intent.parent if rebase else source.info.parent
    below = get(connection, intent.namespace, intent.snapshotter, parent) if parent else None
    if below is not None and below.info.kind is not Kind.COMMITTED:
        raise FailedPrecondition(f"parent {parent!r} of snapshot {intent.source!r} is not committed")
    return _write_intent(
        connection,
        msgspec.structs.replace(
            intent,
            parent=parent,
            backend_parent=below.backend_key if below is not None else "",
            backend_source=source.backend_key,
            rebase=rebase,
        ),
    )


def finish_create(transaction: Transaction, intent: Intent) -> None:
    """Make the record of what the back end has made."""
    connection = transaction.connection
    end(connection, intent)
    kind = Kind.VIEW if intent.action == "view" else Kind.ACTIVE
    info = Info(name=intent.key, kind=kind, parent=intent.parent, labels=intent.labels)
    insert(transaction, intent.namespace, intent.snapshotter, Row(info=info, backend_key=intent.backend_key))
    if intent.action == "prepare":
        event = rpc.snapshot_prepare(intent.key, intent.parent, intent.snapshotter)
        transaction.emit(intent.namespace, "/snapshot/prepare", event)


def finish_commit(transaction: Transaction, intent: Intent) -> None:
    """Move the record from the key to the name."""
    connection = transaction.connection
    end(connection, intent)
    forget(connection, intent.namespace, intent.snapshotter, intent.source)
    resource = Resource(type=f"snapshots/{intent.snapshotter}", id=intent.source)
    release(connection, intent.namespace, intent.lease, resource)
    info = Info(name=intent.key, kind=Kind.COMMITTED, parent=intent.parent, labels=intent.labels)
    insert(transaction, intent.namespace, intent.snapshotter, Row(info=info, backend_key=intent.backend_key))
    event = rpc.snapshot_commit(intent.source, intent.key, intent.snapshotter)
    transaction.emit(intent.namespace, "/snapshot/commit", event)


def adopt(transaction: Transaction, intent: Intent, found: Info) -> None:
    """Make the record of a committed snapshot that the back end had already for the target that was asked for."""
    connection = transaction.connection
    end(connection, intent)
    target = intent.labels[labels.SNAPSHOT_REF]
    hold(connection, intent, target)
    if find(connection, intent.namespace, intent.snapshotter, target) is None:
        info = Info(name=target, kind=Kind.COMMITTED, parent=intent.parent, labels={**found.labels, **intent.labels})
        insert(transaction, intent.namespace, intent.snapshotter, Row(info=info, backend_key=found.name))


def end(connection: sqlite3.Connection, intent: Intent) -> None:
    connection.execute("DELETE FROM intents WHERE id = ?", (intent.id,))


def abandon(transaction: Transaction, intent: Intent, *, awaited: bool = False) -> None:
    """End an intent whose call failed; what the back end made of it, or may make yet, is to be removed there."""
    end(transaction.connection, intent)
    tombstones.bury_snapshot(transaction.connection, intent.snapshotter, intent.backend_key, awaited=awaited)
    transaction.deletion = True


def conclude(transaction: Transaction, intent: Intent, *, happened: bool) -> bool:
    """End an intent from before; `happened` says whether the back end made the commit. True if that is recorded."""
    connection = transaction.connection
    known = find(connection, intent.namespace, intent.snapshotter, intent.source)
    taken = find(connection, intent.namespace, intent.snapshotter, intent.key)
    if happened and known is not None and taken is None:
        finish_commit(transaction, intent)
        return True
    abandon(transaction, intent, awaited=intent.action != "commit")
    return False


def intents(connection: sqlite3.Connection, snapshotter: str) -> Sequence[Intent]:
    rows = connection.execute("SELECT id, details FROM intents WHERE snapshotter = ? ORDER BY id", (snapshotter,))
    return [msgspec.structs.replace(msgspec.json.decode(details, type=Intent), id=id) for id, details in rows]


def _write_intent(connection: sqlite3.Connection, intent: Intent) -> Intent:
    namespaces.ensure(connection, intent.namespace)
    key = tombstones.backend_key(connection, intent.namespace, intent.key)
    intent = msgspec.structs.replace(intent, backend_key=key)
    cursor = connection.execute(
        "INSERT INTO intents (namespace, snapshotter, action, key, backend_key, details, created_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            intent.namespace,
            intent.snapshotter,
            intent.action,
            intent.key,
            intent.backend_key,
            msgspec.json.encode(intent).decode(),
            now(),
        ),
    )
    return msgspec.structs.replace(intent, id=cursor.lastrowid or 0)


def _state(
    connection: sqlite3.Connection,
    namespace: str,
    snapshotter: str,
    key: str,
    *,
    parent: str,
    stated: Mapping[str, str],
) -> None:
    references = [(edges.snapshot(snapshotter, parent), "parent")] if parent else []
    edges.state(connection, namespace, edges.snapshot(snapshotter, key), stated, references=references)


def _row(row: tuple[Any, ...]) -> Row:
    key, backend_key, kind, parent, stored, created, updated = row
    return Row(
        info=Info(
            name=key,
            kind=Kind(kind),
            parent=parent,
            labels=unpack(stored),
            created_at=to_time(created),
            updated_at=to_time(updated),
        ),
        backend_key=backend_key,
    )
