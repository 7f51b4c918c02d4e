"""Namespaces. One exists from its creation, or from the first object made in it; it goes only when it is empty."""

import sqlite3
from collections.abc import Sequence
from dataclasses import replace

from carina import labels
from carina.context import validate_identifier
from carina.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from carina.namespaces import Namespace
from metadatad import rpc, tombstones
from metadatad.columns import pack, unpack
from metadatad.records import Records, Transaction


def ensure(connection: sqlite3.Connection, name: str) -> None:
    """Make the namespace's row where there is none: whatever is made in a namespace makes the namespace."""
    connection.execute("INSERT OR IGNORE INTO namespaces (name) VALUES (?)", (name,))


def default_label(connection: sqlite3.Connection, name: str, key: str) -> str:
    """The value of a namespace's label; empty without."""
    row = connection.execute("SELECT labels FROM namespaces WHERE name = ?", (name,)).fetchone()
    return "" if row is None else unpack(row[0]).get(key, "")


class Namespaces:
    """`carina.namespaces.NamespaceStore` on the metadata database."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def get(self, name: str) -> Namespace:
        validate_identifier(name, "namespace")
        return await self._records.read(lambda connection: _find(connection, name) or Namespace(name=name))

    async def list(self) -> Sequence[Namespace]:
        rows = await self._records.read(
            lambda connection: connection.execute("SELECT name, labels FROM namespaces ORDER BY name").fetchall()
        )
        return [Namespace(name=name, labels=unpack(stored)) for name, stored in rows]

    async def create(self, namespace: Namespace) -> Namespace:
        validate_identifier(namespace.name, "namespace")
        labels.validate(namespace.labels)
        namespace = replace(namespace, labels=labels.stated(namespace.labels))

        def insert(transaction: Transaction) -> Namespace:
            if _find(transaction.connection, namespace.name) is not None:
                raise AlreadyExists(f"namespace {namespace.name!r} already exists")
            transaction.connection.execute(
                "INSERT INTO namespaces (name, labels) VALUES (?, ?)", (namespace.name, pack(namespace.labels))
            )
            transaction.emit(namespace.name, "/namespaces/create", rpc.namespace_create(namespace))
            return namespace

        return await self._records.write(insert)

    async def update(self, namespace: Namespace, fields: Sequence[str] = ()) -> Namespace:
        validate_identifier(namespace.name, "namespace")
        paths = list(fields) or ["labels"]
        for path in paths:
            if path != "labels" and not path.startswith("labels."):
                raise InvalidArgument(f"field {path!r} of namespace {namespace.name!r} can't be updated")

        def change(transaction: Transaction) -> Namespace:
            # Setting labels makes the namespace, as in containerd.
            ensure(transaction.connection, namespace.name)
            old = _find(transaction.connection, namespace.name) or Namespace(name=namespace.name)
            new = replace(old, labels=labels.stated(labels.changed(old.labels, namespace.labels, paths)))
            labels.validate(new.labels)
            transaction.connection.execute(
                "UPDATE namespaces SET labels = ? WHERE name = ?", (pack(new.labels), new.name)
            )
            # The labels as asked for, as in containerd: what is empty was removed, what is not named stayed.
            asked = replace(new, labels=namespace.labels)
            transaction.emit(new.name, "/namespaces/update", rpc.namespace_update(asked))
            return new

        return await self._records.write(change)

    async def delete(self, name: str) -> None:
        validate_identifier(name, "namespace")

        def remove(transaction: Transaction) -> None:
            connection = transaction.connection
            if _find(connection, name) is None:
                raise NotFound(f"namespace {name!r} does not exist")
            rest = _contents(connection, name)
            if rest:
                raise FailedPrecondition(f"namespace {name!r} must be empty, but it still has {', '.join(rest)}")
            # Leases hold nothing there, and ingests are unfinished: both go along, as in containerd.
            _bury_ingests(connection, name)
            connection.execute("DELETE FROM leases WHERE namespace = ?", (name,))
            connection.execute("DELETE FROM edges WHERE namespace = ?", (name,))
            connection.execute("DELETE FROM pins WHERE namespace = ?", (name,))
            connection.execute("DELETE FROM namespaces WHERE name = ?", (name,))
            transaction.emit(name, "/namespaces/delete", rpc.namespace_delete(name))
            transaction.deletion = True

        await self._records.write(remove)


def _find(connection: sqlite3.Connection, name: str) -> Namespace | None:
    row = connection.execute("SELECT labels FROM namespaces WHERE name = ?", (name,)).fetchone()
    return None if row is None else Namespace(name=name, labels=unpack(row[0]))


def _contents(connection: sqlite3.Connection, name: str) -> list[str]:
    """What keeps a namespace from being deleted, in words."""
    rest = [
        table
        for table in ("images", "blobs", "containers", "sandboxes")
        if connection.execute(f"SELECT 1 FROM {table} WHERE namespace = ? LIMIT 1", (name,)).fetchone()  # noqa: S608
    ]
    snapshotters = connection.execute(
        "SELECT snapshotter FROM snapshots WHERE namespace = ?1 UNION SELECT snapshotter FROM intents "
        "WHERE namespace = ?1 ORDER BY 1",
        (name,),
    )
    rest += [f'snapshots on "{snapshotter}" snapshotter' for (snapshotter,) in snapshotters]
    return rest


def _bury_ingests(connection: sqlite3.Connection, name: str) -> None:
    query = "DELETE FROM ingests WHERE namespace = ? RETURNING backend_ref, expected, shared"
    for backend_ref, expected, shared in connection.execute(query, (name,)).fetchall():
        tombstones.bury_ingest(connection, backend_ref, None if shared else expected)
        if shared:
            tombstones.bury_content(connection, expected, 0)
