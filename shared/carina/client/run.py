"""Containers made from images: snapshot, specification, record, task."""

import contextlib
import json
import logging
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from carina import context, labels
from carina.aio.finish import finish, or_undo
from carina.aio.threads import in_thread
from carina.client.client import Client
from carina.client.image import describe, unpack
from carina.containers import Container
from carina.errors import CarinaError, NotFound
from carina.images import Image
from carina.images.manifest import Config
from carina.leases import Lease
from carina.linux.mount import mounted
from carina.mount import Mount
from carina.oci import spec as oci
from carina.oci.user import User, lookup
from carina.platforms import Matcher, Platform, host
from carina.typed import Runtime, TypedValue

log = logging.getLogger(__name__)

DEFAULT_RUNTIME: Final = "io.containerd.runc.v2"
DEFAULT_SNAPSHOTTER: Final = "overlayfs"
RESERVED_LABELS: Final = ("containerd.io/", "io.cri-containerd", "io.containerd.")
"""What an image may not say of its containers: these labels steer the daemon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is wanted of a new container."""

    id: str
    snapshotter: str = ""
    """Empty: the namespace's default, else overlayfs."""
    runtime: str = ""
    """Empty: the namespace's default, else runc's shim."""
    user: str = ""
    """As in an image's `USER`; empty: the image's."""
    labels: Mapping[str, str] = field(default_factory=dict)
    options: oci.Options = field(default_factory=oci.Options)
    platform: Platform | None = None
    """Of the image; None: this machine's."""
    snapshot_labels: Mapping[str, str] = field(default_factory=dict)
    runtime_options: TypedValue | None = None
    sandbox: str = ""
    """Id of the sandbox that the container belongs to."""
    spec: Mapping[str, Any] | None = None
    """A whole specification, in place of one from image and options."""


def wish(id: str, args: Sequence[str], options: oci.Options | None, **more: Any) -> Wish:
    """A wish in the words of `Client.create_container`; what is None or empty there is left out."""
    wanted = options or oci.NO_WISHES
    given = {key: value for key, value in more.items() if value}
    return Wish(id=id, options=replace(wanted, args=args) if args else wanted, **given)


@contextlib.asynccontextmanager
async def leased(client: Client, *, hours: float = 24) -> AsyncIterator[str]:
    """A lease around the block's calls, deleted after it, and expiring if we don't come to that.

    Its id, empty where nothing is collected: there is no constellation.
    """
    if not client.collects:
        yield ""
        return
    until = (datetime.now(UTC) + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")
    identifier = f"carina-{secrets.token_hex(8)}"
    making = client.leases.create(Lease(id=identifier, labels={labels.GC_EXPIRE: until}))
    await or_undo(making, lambda _: client.leases.delete(identifier))
    try:
        with context.within(lease=identifier):
            yield identifier
    finally:
        with contextlib.suppress(NotFound):
            await finish(client.leases.delete(identifier))


async def create(client: Client, image: Image, wish: Wish) -> Container:
    """Make a container on a new snapshot of an image.

    Raises:
        AlreadyExists: a container or snapshot of that id is there.
        InvalidArgument: the id, or something that image and wish ask for, can't be.
    """
    context.validate_identifier(wish.id, "container id")
    name = await snapshotter_for(client, wish.snapshotter)
    runtime = wish.runtime or client.default_runtime
    runtime = runtime or (await _namespace_labels(client)).get(labels.DEFAULT_RUNTIME) or DEFAULT_RUNTIME
    made: Container | None = None
    try:
        async with leased(client):
            made = await _create(client, image, wish, name, runtime)
    except BaseException:
        if made is not None:
            with contextlib.suppress(CarinaError):
                await finish(remove(client, made))
        raise
    return made


async def snapshotter_for(client: Client, wanted: str = "") -> str:
    """The name of the snapshotter for an image or a container: what is wanted, else the default."""
    found = wanted or client.default_snapshotter
    return found or (await _namespace_labels(client)).get(labels.DEFAULT_SNAPSHOTTER) or DEFAULT_SNAPSHOTTER


async def unpacked(client: Client, image: Image, wanted: str = "") -> str:
    """Have the layers of an image as snapshots; the key of the topmost. The errors are those of `unpack`."""
    name = await snapshotter_for(client, wanted)
    async with leased(client):
        described = await describe(client.content, image)
        return await unpack(client.content, client.snapshotter(name), client.diff, described, name=name)


async def _create(client: Client, image: Image, wish: Wish, name: str, runtime: str) -> Container:
    snapshotter = client.snapshotter(name)
    described = await describe(client.content, image, Matcher.only(wish.platform) if wish.platform else None)
    top = await unpack(client.content, snapshotter, client.diff, described, name=name)
    preparing = snapshotter.prepare(wish.id, top, {labels.GC_ROOT: _now(), **wish.snapshot_labels})
    mounts = await or_undo(preparing, lambda _: snapshotter.remove(wish.id))
    try:
        spec = wish.spec or await _spec(described.config, wish, mounts)
        container = Container(
            id=wish.id,
            image=image.name,
            labels={**_image_labels(described.config, image.name), **wish.labels},
            runtime=Runtime(name=runtime, options=wish.runtime_options),
            spec=TypedValue(oci.TYPE_URL, json.dumps(spec).encode()),
            snapshotter=name,
            snapshot_key=wish.id,
            sandbox=wish.sandbox,
        )
        return await or_undo(client.containers.create(container), lambda _: client.containers.delete(wish.id))
    except BaseException:
        with contextlib.suppress(CarinaError):
            await finish(snapshotter.remove(wish.id))
        raise


async def create_on(client: Client, root: Path | None, wish: Wish) -> Container:
    """Make a container on a directory that is its root file system, or on the one in `wish.spec`; without a snapshot.

    Raises:
        AlreadyExists: a container of that id is there.
        InvalidArgument: the id, or something of the wish, can't be.
    """
    context.validate_identifier(wish.id, "container id")
    runtime = wish.runtime or (await _namespace_labels(client)).get(labels.DEFAULT_RUNTIME) or DEFAULT_RUNTIME
    options = wish.options
    if wish.user and root is not None:
        options = replace(options, user=await in_thread(lookup, str(root), wish.user))
    spec = dict(wish.spec or oci.generate(wish.id, context.namespace(), Config(platform=host(), diff_ids=()), options))
    if root is not None:
        spec["root"] = {**spec.get("root", {}), "path": str(root)}
    container = Container(
        id=wish.id,
        labels=wish.labels,
        runtime=Runtime(name=runtime, options=wish.runtime_options),
        spec=TypedValue(oci.TYPE_URL, json.dumps(spec).encode()),
        sandbox=wish.sandbox,
    )
    return await client.containers.create(container)


async def remove(client: Client, container: Container) -> None:
    """Delete a container's record and its snapshot."""
    await client.containers.delete(container.id)
    if container.snapshot_key:
        with contextlib.suppress(NotFound):
            await client.snapshotter(container.snapshotter).remove(container.snapshot_key)


async def rootfs(client: Client, container: Container) -> list[Mount]:
    """The mounts of a container's root file system."""
    if not container.snapshot_key:
        return []
    return await client.snapshotter(container.snapshotter).mounts(container.snapshot_key)


async def _namespace_labels(client: Client) -> Mapping[str, str]:
    if not client.collects:
        return {}  # a directory of images has no namespaces
    try:
        return (await client.namespaces.get(context.namespace())).labels
    except NotFound:
        return {}


async def _spec(config: Config, wish: Wish, mounts: list[Mount]) -> dict[str, object]:
    text = wish.user or config.user
    options = wish.options
    if text:
        options = replace(options, user=await in_thread(_lookup, mounts, text))
    namespace = context.namespace()
    if options.devices or options.cdi_devices:
        return await in_thread(lambda: oci.generate(wish.id, namespace, config, options))
    return oci.generate(wish.id, namespace, config, options)


def _lookup(mounts: list[Mount], text: str) -> User:
    with mounted(mounts) as root:
        return lookup(str(root), text)


def _image_labels(config: Config, image: str) -> dict[str, str]:
    kept = {}
    for key, value in config.labels.items():
        if key.startswith(RESERVED_LABELS):
            log.warning("image %s: label %s is reserved and not taken over", image, key)
        elif len(key.encode()) + len(value.encode()) <= labels.MAX_SIZE:
            kept[key] = value
    if config.stop_signal:
        kept["io.containerd.image.config.stop-signal"] = config.stop_signal
    return kept


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
