"""Events' payloads as containerd defines them: domain values to encoded messages, and fields of those for filters."""

from typing import Any

import betterproto2

from carina.api.containerd import events as wire
from carina.api.containerd.services.images import v1 as images
from carina.api.google import protobuf
from carina.api.message_pool import default_message_pool
from carina.containers import Container
from carina.errors import InvalidArgument
from carina.images import Image
from carina.namespaces import Namespace
from carina.rpc.codec import decode, encode
from carina.typed import TypedValue


def namespace_create(namespace: Namespace) -> TypedValue:
    return _event(wire.NamespaceCreate(name=namespace.name, labels=dict(namespace.labels)))


def namespace_update(namespace: Namespace) -> TypedValue:
    return _event(wire.NamespaceUpdate(name=namespace.name, labels=dict(namespace.labels)))


def namespace_delete(name: str) -> TypedValue:
    return _event(wire.NamespaceDelete(name=name))


def image_create(image: Image) -> TypedValue:
    return _image_event("ImageCreate", images.ImageCreate(name=image.name, labels=dict(image.labels)))


def image_update(image: Image) -> TypedValue:
    return _image_event("ImageUpdate", images.ImageUpdate(name=image.name, labels=dict(image.labels)))


def image_delete(name: str) -> TypedValue:
    return _image_event("ImageDelete", images.ImageDelete(name=name))


def container_create(container: Container) -> TypedValue:
    runtime = None
    if container.runtime is not None:
        options = container.runtime.options
        runtime = wire.ContainerCreateRuntime(
            name=container.runtime.name,
            options=None if options is None else protobuf.Any(type_url=options.type_url, value=options.value),
        )
    return _event(wire.ContainerCreate(id=container.id, image=container.image, runtime=runtime))


def container_update(container: Container) -> TypedValue:
    return _event(
        wire.ContainerUpdate(
            id=container.id,
            image=container.image,
            labels=dict(container.labels),
            snapshot_key=container.snapshot_key,
        )
    )


def container_delete(id: str) -> TypedValue:
    return _event(wire.ContainerDelete(id=id))


def content_create(digest: str, size: int) -> TypedValue:
    return _event(wire.ContentCreate(digest=digest, size=size))


def content_delete(digest: str) -> TypedValue:
    return _event(wire.ContentDelete(digest=digest))


def snapshot_prepare(key: str, parent: str, snapshotter: str) -> TypedValue:
    return _event(wire.SnapshotPrepare(key=key, parent=parent, snapshotter=snapshotter))


def snapshot_commit(key: str, name: str, snapshotter: str) -> TypedValue:
    return _event(wire.SnapshotCommit(key=key, name=name, snapshotter=snapshotter))


def snapshot_remove(key: str, snapshotter: str) -> TypedValue:
    return _event(wire.SnapshotRemove(key=key, snapshotter=snapshotter))


def event_field(event: TypedValue, path: tuple[str, ...]) -> str | None:
    """A field of an event for a filter (`event.container_id`, `event.labels.x`); None if it is unset or unknown."""
    kind = default_message_pool.url_to_type.get(f"type.googleapis.com/{event.type_url.rpartition('/')[2]}")
    if kind is None:
        return None
    try:
        value: Any = decode(kind, event.value)
    except InvalidArgument:  # whoever published it is to blame, not who filters
        return None
    for index, part in enumerate(path):
        if isinstance(value, dict):
            value = value.get(".".join(path[index:]))
            break
        if not isinstance(value, betterproto2.Message) or part.startswith("_"):
            return None
        value = getattr(value, part, None)
    return str(value) if isinstance(value, str | int) and value != "" else None


def _event(message: betterproto2.Message) -> TypedValue:
    return TypedValue(f"containerd.events.{type(message).__name__}", encode(message))


def _image_event(name: str, message: betterproto2.Message) -> TypedValue:
    return TypedValue(f"containerd.services.images.v1.{name}", encode(message))
