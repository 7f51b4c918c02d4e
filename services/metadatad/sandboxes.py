"""Sandbox records. Their references count as roots while the record exists."""

import builtins
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from carina import context, labels
from carina.context import validate_identifier
from carina.errors import AlreadyExists, InvalidArgument, NotFound
from carina.filters import exact, matcher
from carina.sandboxes import Sandbox
from carina.sandboxes.fields import fields as sandbox_fields
from carina.sqlite import now, to_time
from carina.typed import Runtime
from metadatad import edges, masks, namespaces
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
)
from metadatad.records import Records, Transaction

MUTABLE: Final = ("labels", "extensions", "spec", "runtime")
_COLUMNS: Final = (
    "id, labels, runtime, options_url, options, spec_url, spec, sandboxer, extensions, created_at, updated_at"
)


class Sandboxes:
    """`carina.sandboxes.SandboxStore` on the metadata database."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def get(self, id: str) -> Sandbox:
        namespace = context.namespace()
        return await self._records.read(lambda connection: _get(connection, namespace, id))

    async def list(self, filters: Sequence[str] = ()) -> builtins.list[Sandbox]:
        namespace = context.namespace()
        matches, keys = matcher(filters, sandbox_fields), exact(filters, "id")

        def find(connection: sqlite3.Connection) -> builtins.list[Sandbox]:
            rows = select(connection, columns=_COLUMNS, table="sandboxes", key="id", namespace=namespace, keys=keys)
            return [found for found in map(_sandbox, rows) if matches(found)]

        return await self._records.read(find)

    async def create(self, sandbox: Sandbox) -> Sandbox:
        namespace = context.namespace()
        _validate(sandbox)

        def insert(transaction: Transaction) -> Sandbox:
            connection = transaction.connection
            if _find(connection, namespace, sandbox.id) is not None:
                raise AlreadyExists(f"sandbox {sandbox.id!r} already exists")
            namespaces.ensure(connection, namespace)
            created = to_time(now())
            stored = replace(sandbox, labels=labels.stated(sandbox.labels), created_at=created, updated_at=created)
            _store(connection, namespace, stored)
            return stored

        return await self._records.write(insert)

    async def update(self, sandbox: Sandbox, fields: Sequence[str] = ()) -> Sandbox:
        namespace = context.namespace()
        validate_identifier(sandbox.id, "sandbox id")

        def change(transaction: Transaction) -> Sandbox:
            connection = transaction.connection
            old = _get(connection, namespace, sandbox.id)
            new = replace(_changed(old, sandbox, fields), updated_at=to_time(now()))
            _validate(new)
            _store(connection, namespace, new)
            transaction.deletion = True
            return _get(connection, namespace, sandbox.id)

        return await self._records.write(change)

    async def delete(self, id: str) -> None:
        namespace = context.namespace()

        def remove(transaction: Transaction) -> None:
            _get(transaction.connection, namespace, id)
            transaction.connection.execute("DELETE FROM sandboxes WHERE namespace = ? AND id = ?", (namespace, id))
            edges.forget(transaction.connection, namespace, edges.sandbox(id))
            transaction.deletion = True

        await self._records.write(remove)


def _changed(old: Sandbox, new: Sandbox, fields: Sequence[str]) -> Sandbox:
    if not fields and (new.runtime.name if new.runtime else "") != (old.runtime.name if old.runtime else ""):
        raise InvalidArgument(f"the runtime of sandbox {old.id!r} is immutable")
    whole = {"spec": "spec", "runtime": "runtime"}
    return masks.changed(old, new, fields or MUTABLE, whole=whole, owner=f"sandbox {old.id!r}")


def _validate(sandbox: Sandbox) -> None:
    validate_identifier(sandbox.id, "sandbox id")
    validate_extensions(sandbox.extensions, f"sandbox {sandbox.id!r}")
    labels.validate(sandbox.labels)
    if sandbox.runtime is None or not sandbox.runtime.name:
        raise InvalidArgument(f"sandbox {sandbox.id!r} must have a runtime")


def _store(connection: sqlite3.Connection, namespace: str, sandbox: Sandbox) -> None:
    runtime = sandbox.runtime or Runtime(name="")
    connection.execute(
        f"INSERT OR REPLACE INTO sandboxes (namespace, {_COLUMNS}) "  # noqa: S608
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            namespace,
            sandbox.id,
            pack(sandbox.labels),
            runtime.name,
            *split(runtime.options),
            *split(sandbox.spec),
            sandbox.sandboxer,
            pack_values(sandbox.extensions),
            moment(sandbox.created_at, 0),
            moment(sandbox.updated_at, 0),
        ),
    )
    edges.state(connection, namespace, edges.sandbox(sandbox.id), sandbox.labels)


def _sandbox(row: tuple[Any, ...]) -> Sandbox:
    id, stored, runtime, options_url, options, spec_url, spec, sandboxer, extensions, created, updated = row
    return Sandbox(
        id=id,
        labels=unpack(stored),
        runtime=Runtime(name=runtime, options=typed(options_url, options)),
        spec=typed(spec_url, spec),
        sandboxer=sandboxer,
        extensions=unpack_values(extensions),
        created_at=to_time(created),
        updated_at=to_time(updated),
    )


def _find(connection: sqlite3.Connection, namespace: str, id: str) -> Sandbox | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM sandboxes WHERE namespace = ? AND id = ?",  # noqa: S608
        (namespace, id),
    ).fetchone()
    return None if row is None else _sandbox(row)


def _get(connection: sqlite3.Connection, namespace: str, id: str) -> Sandbox:
    sandbox = _find(connection, namespace, id)
    if sandbox is None:
        raise NotFound(f"sandbox {id!r} does not exist")
    return sandbox
