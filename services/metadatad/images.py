"""Image records. An image keeps its target and what that refers to; deleting the record is deleting the image."""

import builtins
import contextlib
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from carina import context, labels
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import AlreadyExists, InvalidArgument, NotFound
from carina.filters import exact, matcher
from carina.images import Image
from carina.images.fields import fields as image_fields
from carina.leases import Resource
from carina.sqlite import now, to_time
from metadatad import edges, leases, listing, namespaces, rpc
from metadatad.columns import moment, pack, select, unpack, validate_name
from metadatad.records import Records, Transaction

_COLUMNS = "name, media_type, digest, size, annotations, labels, created_at, updated_at"


class Images:
    """`carina.images.ImageStore` on the metadata database."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def get(self, name: str) -> Image:
        namespace = context.namespace()
        return await self._records.read(lambda connection: _get(connection, namespace, name))

    async def list(self, filters: Sequence[str] = ()) -> builtins.list[Image]:
        namespace = context.namespace()
        matches, keys = matcher(filters, image_fields), exact(filters, "name")

        def find(connection: sqlite3.Connection) -> builtins.list[Image]:
            rows = select(connection, columns=_COLUMNS, table="images", key="name", namespace=namespace, keys=keys)
            return [found for found in map(_image, rows) if matches(found)]

        return await self._records.read(find)

    async def listing(self) -> bytes:
        """See `carina.images.server.Listing`."""
        namespace = context.namespace()
        return await self._records.read(lambda connection: listing.images(connection, namespace))

    async def create(self, image: Image) -> Image:
        call, namespace = context.current(), context.namespace()
        _validate(image)

        def insert(transaction: Transaction) -> Image:
            connection = transaction.connection
            if _find(connection, namespace, image.name) is not None:
                raise AlreadyExists(f"image {image.name!r} already exists")
            namespaces.ensure(connection, namespace)
            created = now()
            stored = replace(
                image, labels=labels.stated(image.labels), created_at=to_time(created), updated_at=to_time(created)
            )
            _store(connection, namespace, stored)
            _lease(connection, namespace, call.lease, stored)
            transaction.emit(namespace, "/images/create", rpc.image_create(stored))
            return stored

        return await self._records.write(insert)

    async def update(self, image: Image, fields: Sequence[str] = ()) -> Image:
        call, namespace = context.current(), context.namespace()
        validate_name(image.name, "image name")

        def change(transaction: Transaction) -> Image:
            connection = transaction.connection
            old = _get(connection, namespace, image.name)
            new = replace(_changed(old, image, fields), created_at=old.created_at, updated_at=to_time(now()))
            _validate(new)
            _store(connection, namespace, new)
            _lease(connection, namespace, call.lease, new)
            transaction.emit(namespace, "/images/update", rpc.image_update(new))
            transaction.deletion = True
            return _get(connection, namespace, image.name)

        return await self._records.write(change)

    async def delete(self, name: str, *, sync: bool = False, target: Descriptor | None = None) -> None:
        call, namespace = context.current(), context.namespace()

        def remove(transaction: Transaction) -> None:
            found = _get(transaction.connection, namespace, name)
            if target is not None and target.digest != found.target.digest:
                raise NotFound(f"image {name!r} has the target {found.target.digest}, not {target.digest}")
            discard(transaction.connection, namespace, name)
            with contextlib.suppress(NotFound):  # the lease has gone meanwhile
                leases.release(transaction.connection, namespace, call.lease, Resource(type="images", id=name))
            transaction.emit(namespace, "/images/delete", rpc.image_delete(name))
            transaction.deletion = True

        await self._records.write(remove)
        if sync:
            await self._records.collect()


def discard(connection: sqlite3.Connection, namespace: str, name: str) -> bool:
    """Remove an image's rows, with what it states; False where there is no such image."""
    cursor = connection.execute("DELETE FROM images WHERE namespace = ? AND name = ?", (namespace, name))
    edges.forget(connection, namespace, edges.image(name))
    return cursor.rowcount > 0


def _lease(connection: sqlite3.Connection, namespace: str, lease: str | None, image: Image) -> None:
    """Have a lease hold an image that would expire otherwise; every other image is kept for its own sake."""
    if labels.GC_EXPIRE in image.labels:
        leases.hold(connection, namespace, lease, Resource(type="images", id=image.name))


def _changed(old: Image, new: Image, fields: Sequence[str]) -> Image:
    if not fields:
        return new
    result = old
    for field in fields:
        if field == "labels" or field.startswith("labels."):
            result = replace(result, labels=labels.changed(result.labels, new.labels, [field]))
        elif field == "target":
            result = replace(result, target=new.target)
        elif field == "annotations" or field.startswith("annotations."):
            path = "labels" + field.removeprefix("annotations")
            annotations = labels.changed(result.target.annotations, new.target.annotations, [path])
            result = replace(result, target=replace(result.target, annotations=annotations))
        else:
            raise InvalidArgument(f"field {field!r} of image {old.name!r} can't be updated")
    return result


def _validate(image: Image) -> None:
    validate_name(image.name, "image name")
    labels.validate(image.labels)
    if not image.target.media_type:
        raise InvalidArgument(f"the target of image {image.name!r} has no media type")
    if image.target.size <= 0:
        raise InvalidArgument(f"the target of image {image.name!r} must have a size greater than zero")


def _store(connection: sqlite3.Connection, namespace: str, image: Image) -> None:
    target = image.target
    connection.execute(
        f"INSERT OR REPLACE INTO images (namespace, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
        (
            namespace,
            image.name,
            target.media_type,
            target.digest,
            target.size,
            pack(target.annotations),
            pack(image.labels),
            moment(image.created_at, 0),
            moment(image.updated_at, 0),
        ),
    )
    edges.state(
        connection,
        namespace,
        edges.image(image.name),
        image.labels,
        references=[(edges.content(target.digest), "target")],
    )


def _image(row: tuple[Any, ...]) -> Image:
    name, media_type, digest, size, annotations, stored, created, updated = row
    return Image(
        name=name,
        target=Descriptor(media_type=media_type, digest=Digest(digest), size=size, annotations=unpack(annotations)),
        labels=unpack(stored),
        created_at=to_time(created),
        updated_at=to_time(updated),
    )


def _find(connection: sqlite3.Connection, namespace: str, name: str) -> Image | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM images WHERE namespace = ? AND name = ?",  # noqa: S608
        (namespace, name),
    ).fetchone()
    return None if row is None else _image(row)


def _get(connection: sqlite3.Connection, namespace: str, name: str) -> Image:
    image = _find(connection, namespace, name)
    if image is None:
        raise NotFound(f"image {name!r} does not exist")
    return image
