"""Container records. A container keeps its snapshot; runtime and snapshotter never change once it is created."""

import builtins
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from carina import context, labels
from carina.containers import Container
from carina.containers.fields import fields as container_fields
from carina.context import validate_identifier
from carina.errors import AlreadyExists, InvalidArgument, NotFound
from carina.filters import exact, matcher
from carina.sqlite import now, to_time
from carina.typed import Runtime
from metadatad import edges, masks, namespaces, rpc
from metadatad.columns import (
    moment,
    pack,
    pack_values,
    select,
    split,
    typed,
    unpack,
    unpack_values,
    validate_extensions,
    validate_name,
)
from metadatad.records import Records, Transaction

MUTABLE: Final = ("labels", "spec", "extensions", "image", "snapshotkey")
_COLUMNS: Final = (
    "id, labels, image, runtime, options_url, options, spec_url, spec, snapshotter, snapshot_key, sandbox, extensions, "
    "created_at, updated_at"
)


class Containers:
    """`carina.containers.ContainerStore` on the metadata database."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def get(self, id: str) -> Container:
        namespace = context.namespace()
        return await self._records.read(lambda connection: _get(connection, namespace, id))

    async def list(self, filters: Sequence[str] = ()) -> builtins.list[Container]:
        namespace = context.namespace()
        matches, keys = matcher(filters, container_fields), exact(filters, "id")

        def find(connection: sqlite3.Connection) -> builtins.list[Container]:
            rows = select(connection, columns=_COLUMNS, table="containers", key="id", namespace=namespace, keys=keys)
            return [found for found in map(_container, rows) if matches(found)]

        return await self._records.read(find)

    async def create(self, container: Container) -> Container:
        namespace = context.namespace()
        _validate(container)

        def insert(transaction: Transaction) -> Container:
            connection = transaction.connection
            if _find(connection, namespace, container.id) is not None:
                raise AlreadyExists(f"container {container.id!r} already exists")
            namespaces.ensure(connection, namespace)
            created = to_time(now())
            stored = replace(container, labels=labels.stated(container.labels), created_at=created, updated_at=created)
            _store(connection, namespace, stored)
            transaction.emit(namespace, "/containers/create", rpc.container_create(stored))
            return stored

        return await self._records.write(insert)

    async def update(self, container: Container, fields: Sequence[str] = ()) -> Container:
        namespace = context.namespace()
        validate_identifier(container.id, "container id")

        def change(transaction: Transaction) -> Container:
            connection = transaction.connection
            old = _get(connection, namespace, container.id)
            new = replace(_changed(old, container, fields), updated_at=to_time(now()))
            _validate(new)
            _store(connection, namespace, new)
            transaction.emit(namespace, "/containers/update", rpc.container_update(new))
            transaction.deletion = True
            return _get(connection, namespace, container.id)

        return await self._records.write(change)

    async def delete(self, id: str) -> None:
        namespace = context.namespace()

        def remove(transaction: Transaction) -> None:
            _get(transaction.connection, namespace, id)
            transaction.connection.execute("DELETE FROM containers WHERE namespace = ? AND id = ?", (namespace, id))
            edges.forget(transaction.connection, namespace, edges.container(id))
            transaction.emit(namespace, "/containers/delete", rpc.container_delete(id))
            transaction.deletion = True

        await self._records.write(remove)


def _changed(old: Container, new: Container, fields: Sequence[str]) -> Container:
    if not fields:
        _check_immutable(old, new)
    whole = {"spec": "spec", "image": "image", "snapshotkey": "snapshot_key"}
    return masks.changed(old, new, fields or MUTABLE, whole=whole, owner=f"container {old.id!r}")


def _check_immutable(old: Container, new: Container) -> None:
    if new.snapshotter != old.snapshotter:
        raise InvalidArgument(f"the snapshotter of container {old.id!r} is immutable")
    if (new.runtime.name if new.runtime else "") != (old.runtime.name if old.runtime else ""):
        raise InvalidArgument(f"the runtime of container {old.id!r} is immutable")


def _validate(container: Container) -> None:
    validate_identifier(container.id, "container id")
    validate_extensions(container.extensions, f"container {container.id!r}")
    labels.validate(container.labels)
    if container.runtime is None or not container.runtime.name:
        raise InvalidArgument(f"container {container.id!r} must have a runtime")
    if container.spec is None:
        raise InvalidArgument(f"container {container.id!r} must have a specification")
    if container.snapshot_key:
        validate_name(container.snapshot_key, f"snapshot key of container {container.id!r}")
        if not container.snapshotter:
            raise InvalidArgument(f"container {container.id!r} has a snapshot key, so it must have a snapshotter")


def _store(connection: sqlite3.Connection, namespace: str, container: Container) -> None:
    runtime = container.runtime or Runtime(name="")
    connection.execute(
        f"INSERT OR REPLACE INTO containers (namespace, {_COLUMNS}) "  # noqa: S608
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            namespace,
            container.id,
            pack(container.labels),
            container.image,
            runtime.name,
            *split(runtime.options),
            *split(container.spec),
            container.snapshotter,
            container.snapshot_key,
            container.sandbox,
            pack_values(container.extensions),
            moment(container.created_at, 0),
            moment(container.updated_at, 0),
        ),
    )
    references = []
    if container.snapshotter and container.snapshot_key:
        references = [(edges.snapshot(container.snapshotter, container.snapshot_key), "target")]
    edges.state(connection, namespace, edges.container(container.id), container.labels, references=references)


def _container(row: tuple[Any, ...]) -> Container:
    id, stored, image, runtime, options_url, options, spec_url, spec, snapshotter, key, sandbox, extensions = row[:12]
    return Container(
        id=id,
        labels=unpack(stored),
        image=image,
        runtime=Runtime(name=runtime, options=typed(options_url, options)),
        spec=typed(spec_url, spec),
        snapshotter=snapshotter,
        snapshot_key=key,
        sandbox=sandbox,
        extensions=unpack_values(extensions),
        created_at=to_time(row[12]),
        updated_at=to_time(row[13]),
    )


def _find(connection: sqlite3.Connection, namespace: str, id: str) -> Container | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM containers WHERE namespace = ? AND id = ?",  # noqa: S608
        (namespace, id),
    ).fetchone()
    return None if row is None else _container(row)


def _get(connection: sqlite3.Connection, namespace: str, id: str) -> Container:
    container = _find(connection, namespace, id)
    if container is None:
        raise NotFound(f"container {id!r} does not exist")
    return container
