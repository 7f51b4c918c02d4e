"""Leases, and what they hold. Expired ones are the collector's business."""

import builtins
import secrets
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from carina import context, labels
from carina.digest import Digest
from carina.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented
from carina.filters import exact, matcher
from carina.leases import Lease, Resource
from carina.leases.fields import fields
from carina.sqlite import now, to_time
from metadatad import edges, namespaces
from metadatad.columns import moment, pack, select, unpack, validate_name
from metadatad.records import Records, Transaction

TYPES: Final = ("content", "ingests", "images")
_COLUMNS: Final = "id, labels, created_at"


def hold(connection: sqlite3.Connection, namespace: str, lease: str | None, resource: Resource) -> None:
    """Add a resource to a lease; nothing without a lease (`carina.context.current().lease`).

    For every store that makes something: call it in the transaction that makes the record.

    Raises:
        NotFound: no such lease.
        InvalidArgument: there can't be such a resource.
        Unimplemented: a lease can't hold this type.
    """
    if lease is None or lease == "":
        return
    found = _get(connection, namespace, lease)
    _validate_resource(resource)
    connection.execute(
        "INSERT OR IGNORE INTO lease_resources (namespace, lease, type, id) VALUES (?, ?, ?, ?)",
        (namespace, lease, resource.type, resource.id),
    )
    flat = labels.GC_FLAT in found.labels and resource.type != "ingests"  # an ingest's blob is kept in any case
    kind = "flat" if flat else "ref"
    connection.execute(
        "INSERT OR IGNORE INTO edges (namespace, source, destination, kind) VALUES (?, ?, ?, ?)",
        (namespace, edges.lease(lease), edges.resource(resource.type, resource.id), kind),
    )


def release(connection: sqlite3.Connection, namespace: str, lease: str | None, resource: Resource) -> None:
    """Take a resource from a lease, if it holds it.

    Raises:
        NotFound: no such lease.
        InvalidArgument: there can't be such a resource.
        Unimplemented: a lease can't hold this type.
    """
    if lease is None or lease == "":
        return
    _get(connection, namespace, lease)
    _validate_resource(resource)
    connection.execute(
        "DELETE FROM lease_resources WHERE namespace = ? AND lease = ? AND type = ? AND id = ?",
        (namespace, lease, resource.type, resource.id),
    )
    connection.execute(
        "DELETE FROM edges WHERE namespace = ? AND source = ? AND destination = ? AND kind IN ('ref', 'flat')",
        (namespace, edges.lease(lease), edges.resource(resource.type, resource.id)),
    )


class Leases:
    """`carina.leases.LeaseManager` on the metadata database."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def create(self, lease: Lease) -> Lease:
        namespace = context.namespace()
        if not lease.id:
            lease = replace(lease, id=f"{time.time_ns()}-{secrets.token_urlsafe(6)}")
        validate_name(lease.id, "lease id")
        labels.validate(lease.labels)
        lease = replace(lease, labels=labels.stated(lease.labels))

        def insert(transaction: Transaction) -> Lease:
            connection = transaction.connection
            if _find(connection, namespace, lease.id) is not None:
                raise AlreadyExists(f"lease {lease.id!r} already exists")
            namespaces.ensure(connection, namespace)
            created = moment(lease.created_at, now())
            connection.execute(
                "INSERT INTO leases (namespace, id, labels, created_at) VALUES (?, ?, ?, ?)",
                (namespace, lease.id, pack(lease.labels), created),
            )
            edges.state(connection, namespace, edges.lease(lease.id), lease.labels)
            return replace(lease, created_at=to_time(created))

        return await self._records.write(insert)

    async def delete(self, id: str, *, sync: bool = False) -> None:
        namespace = context.namespace()

        def remove(transaction: Transaction) -> None:
            _get(transaction.connection, namespace, id)
            discard(transaction.connection, namespace, id)
            transaction.deletion = True

        await self._records.write(remove)
        if sync:
            await self._records.collect()

    async def list(self, filters: Sequence[str] = ()) -> builtins.list[Lease]:
        namespace = context.namespace()
        matches, keys = matcher(filters, fields), exact(filters, "id")

        def find(connection: sqlite3.Connection) -> builtins.list[Lease]:
            rows = select(connection, columns=_COLUMNS, table="leases", key="id", namespace=namespace, keys=keys)
            return [found for found in map(_lease, rows) if matches(found)]

        return await self._records.read(find)

    async def add_resource(self, id: str, resource: Resource) -> None:
        namespace = context.namespace()
        validate_name(id, "lease id")
        await self._records.write(lambda transaction: hold(transaction.connection, namespace, id, resource))

    async def delete_resource(self, id: str, resource: Resource) -> None:
        namespace = context.namespace()
        validate_name(id, "lease id")

        def remove(transaction: Transaction) -> None:
            release(transaction.connection, namespace, id, resource)
            transaction.deletion = True

        await self._records.write(remove)

    async def resources(self, id: str) -> Sequence[Resource]:
        namespace = context.namespace()

        def held(connection: sqlite3.Connection) -> builtins.list[Resource]:
            _get(connection, namespace, id)
            rows = connection.execute(
                "SELECT type, id FROM lease_resources WHERE namespace = ? AND lease = ? ORDER BY type, id",
                (namespace, id),
            )
            return [Resource(type=type, id=id) for type, id in rows]

        return await self._records.read(held)


def discard(connection: sqlite3.Connection, namespace: str, id: str) -> bool:
    """Remove a lease's rows, with what it holds and states; False where there is no such lease."""
    cursor = connection.execute("DELETE FROM leases WHERE namespace = ? AND id = ?", (namespace, id))
    edges.forget(connection, namespace, edges.lease(id))
    return cursor.rowcount > 0


def _lease(row: tuple[Any, ...]) -> Lease:
    return Lease(id=row[0], labels=unpack(row[1]), created_at=to_time(row[2]))


def _find(connection: sqlite3.Connection, namespace: str, id: str) -> Lease | None:
    row = connection.execute(
        "SELECT labels, created_at FROM leases WHERE namespace = ? AND id = ?", (namespace, id)
    ).fetchone()
    return None if row is None else Lease(id=id, labels=unpack(row[0]), created_at=to_time(row[1]))


def _get(connection: sqlite3.Connection, namespace: str, id: str) -> Lease:
    lease = _find(connection, namespace, id)
    if lease is None:
        raise NotFound(f"lease {id!r} does not exist")
    return lease


def _validate_resource(resource: Resource) -> None:
    kind, slash, rest = resource.type.partition("/")
    if kind not in (*TYPES, "snapshots"):
        raise Unimplemented(
            f"a lease can't hold {resource.type[:64]!r}: expected {', '.join(TYPES)} or snapshots/SNAPSHOTTER"
        )
    if bool(slash) != (kind == "snapshots") or (slash and (not rest or "/" in rest)):
        form = "snapshots/SNAPSHOTTER" if kind == "snapshots" else kind
        raise InvalidArgument(f"resource type {resource.type[:64]!r} is not valid: expected {form}")
    if kind == "content":
        Digest(resource.id)
    validate_name(resource.id, f"id of the {resource.type} resource")
