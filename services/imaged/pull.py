"""Pulling: a reference becomes content, snapshots and an image record, under a lease until the record keeps them.

Layers are downloaded side by side and unpacked bottom up as they arrive.
"""

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from carina import context, faults
from carina.aio.finish import finish
from carina.aio.locks import KeyedLock
from carina.content import ContentStore
from carina.descriptor import Descriptor
from carina.diff import Differ
from carina.digest import Digest
from carina.errors import AlreadyExists, CarinaError, InvalidArgument, NotFound, Unavailable
from carina.images import Image, ImageStore
from carina.images.manifest import Config, Manifest
from carina.labels import GC_EXPIRE
from carina.layer.workers import Workers
from carina.leases import Lease, LeaseManager
from carina.platforms import Matcher, host
from carina.snapshots import Snapshotter
from carina.transfer import ExtraReference, Store
from imaged.fetch import Fetch, Found, Wish
from imaged.fetcher import Pace
from imaged.ingest import CALL_SECONDS
from imaged.phases import phase
from imaged.progress import Tracker
from imaged.sources import Resolver
from imaged.unpack import Unpacker
from imaged.verifiers import Verifiers

LEASE_HOURS: Final = 24
PURPOSE: Final = "carina.io/lease.purpose"
"""Label of a lease: what it was made for."""
_in_use: Final[set[str]] = set()
"""Leases of this process that end by themselves."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """What image operations work on. `leases` is None where the content store collects nothing."""

    content: ContentStore
    images: ImageStore
    snapshotter: Callable[[str], Snapshotter]
    """By name; raises NotFound."""
    differ: Differ
    leases: LeaseManager | None = None
    default_snapshotter: str = "overlayfs"
    locks: KeyedLock = field(default_factory=KeyedLock)
    capabilities: Callable[[str], Awaitable[Sequence[str]]] | None = None
    """Of a snapshotter, by name. Without it, layers are unpacked one after the other."""
    sync_fs: bool = True
    """Flush each layer to disk before its snapshot is committed."""
    downloads: int = 4
    """Connections to a registry that one pull keeps busy."""
    uploads: int = 3
    """Blobs that one push sends at a time."""
    verifiers: Verifiers | None = None
    """Who is asked before anything of an image is fetched."""
    pace: Pace = field(default_factory=Pace)
    workers: Workers | None = None
    """The differ's, told ahead when layers will come."""


async def pull(stores: Stores, resolver: Resolver, into: Store, *, tracker: Tracker) -> list[Image]:
    """Resolve, fetch, unpack, record. The errors are those of `carina.transfer.Transfer.pull`."""
    reference = resolver.reference
    origin = resolver.title
    if into.unpacks and stores.workers is not None:
        stores.workers.expect()
    async with lease(stores.leases, f"pull {reference}"):
        tracker.say(f"Resolving from {origin}")
        with phase("resolve", image=str(reference)):
            root = await resolver.resolve()
        if stores.verifiers is not None:
            await stores.verifiers.check(str(reference), root)
        tracker.say(f"Pulling from {origin}")
        tracker.say("fetching image content", name=str(reference), descriptor=root)
        slots = asyncio.Semaphore(stores.downloads)
        fetch = Fetch(
            name=str(reference),
            store=stores.content,
            fetcher=resolver.source(slots),
            tracker=tracker,
            locks=stores.locks,
            slots=slots,
        )
        wish = Wish(platforms=into.platforms, all_metadata=into.all_metadata, limit=into.manifest_limit)
        found = await fetch.documents(root, wish)
        await settle(stores, [one for one in found if one.wanted], into, tracker=tracker, blob=fetch.blob)
        images = await record(stores.images, root, names(into, root), into.labels)
        for image in images:
            tracker.say("saved", name=image.name, descriptor=image.target)
        tracker.say(f"Completed pull from {origin}")
    return images


async def settle(
    stores: Stores,
    found: Sequence[Found],
    into: Store,
    *,
    tracker: Tracker,
    blob: Callable[[Descriptor], Coroutine[Any, Any, None]],
) -> None:
    """Get the layers of images with `blob`, and unpack those images that are to be."""
    unpackers = [(matcher, unpacker(stores, name, tracker)) for matcher, name in _unpacks(stores, into)]
    try:
        async with asyncio.TaskGroup() as group:
            layers: dict[Digest, asyncio.Task[None]] = {}
            for one in found:
                for layer in one.document.layers:
                    if layer.digest not in layers:
                        layers[layer.digest] = group.create_task(blob(layer), name=f"fetch {layer.digest}")
                for matcher, target in unpackers:
                    if one.config is not None and one.document.layers and matcher.matches(one.config.platform):
                        group.create_task(
                            _unpack(target, one.document, one.config, layers), name=f"unpack {one.descriptor.digest}"
                        )
    except BaseExceptionGroup as failures:
        raise first(failures) from None


async def _unpack(
    target: Unpacker, document: Manifest, config: Config, layers: Mapping[Digest, asyncio.Task[None]]
) -> None:
    async def ready(number: int) -> None:
        # Shielded: a layer that two images share is not given up because one of them fails.
        await asyncio.shield(layers[document.layers[number].digest])

    await target.unpack(document, config, ready)


def unpacker(stores: Stores, name: str, tracker: Tracker) -> Unpacker:
    return Unpacker(
        name=name,
        snapshotter=stores.snapshotter(name),
        differ=stores.differ,
        store=stores.content,
        locks=stores.locks,
        tracker=tracker,
        capabilities=stores.capabilities,
        sync_fs=stores.sync_fs,
    )


def _unpacks(stores: Stores, into: Store) -> list[tuple[Matcher, str]]:
    return [
        (Matcher.only(one.platform or host()), one.snapshotter or stores.default_snapshotter) for one in into.unpacks
    ]


def names(into: Store, target: Descriptor) -> list[str]:
    """The names under which a transfer records its image.

    Raises:
        InvalidArgument: it gives none.
    """
    found = [into.name] if into.name else []
    found += [_extra(one, target) for one in into.extra_references if not one.is_prefix]
    if not found:
        raise InvalidArgument("the destination gives no name for the image")
    return list(dict.fromkeys(found))


def _extra(extra: ExtraReference, target: Descriptor) -> str:
    return f"{extra.name}@{target.digest}" if extra.add_digest else extra.name


async def record(
    store: ImageStore, target: Descriptor, wanted: Sequence[str], labels: Mapping[str, str]
) -> list[Image]:
    """Create or update the image records."""
    images = []
    for name in wanted:
        image = Image(name=name, target=target, labels=labels)
        with context.deadline(CALL_SECONDS):
            images.append(await _put(store, image))
        faults.point("imaged.image.recorded")
    return images


async def _put(store: ImageStore, image: Image) -> Image:
    for _ in range(5):
        try:
            return await store.create(image)
        except AlreadyExists:
            pass
        try:
            return await store.update(image)
        except NotFound:
            continue  # deleted in between
    raise AlreadyExists(f"image {image.name}: it is created and deleted by others all the time")


@contextlib.asynccontextmanager
async def lease(leases: LeaseManager | None, purpose: str = "") -> AsyncIterator[str]:
    """Run the block under the call's lease, or under one of its own that ends with it; its id, if there is one.

    One with a `purpose` that is given up half-way stays until it expires, or until the same has succeeded.
    """
    if leases is None or context.current().lease:
        yield context.current().lease or ""
        return
    expire = (datetime.now(UTC) + timedelta(hours=LEASE_HOURS)).strftime("%Y-%m-%dT%H:%M:%SZ")
    labels = {GC_EXPIRE: expire} | ({PURPOSE: purpose} if purpose else {})
    with context.deadline(CALL_SECONDS):
        made = await leases.create(Lease(id=f"imaged-{secrets.token_hex(12)}", labels=labels))
    faults.point("imaged.lease.made")
    _in_use.add(made.id)
    try:
        with context.within(lease=made.id):
            yield made.id
    except (asyncio.CancelledError, Unavailable):
        await finish(_leave(leases, made.id) if purpose else _end(leases, made.id))
        raise
    except BaseException:
        await finish(_end(leases, made.id))
        raise
    else:
        await finish(_end(leases, made.id))
        if purpose:
            await _end_others(leases, purpose)
    finally:
        _in_use.discard(made.id)


async def _leave(leases: LeaseManager, id: str) -> None:
    """Let what was fetched be found by the next attempt; end a lease that holds nothing."""
    try:
        with context.deadline(CALL_SECONDS):
            held = await leases.resources(id)
    except CarinaError as error:
        _log.warning("lease %s is left to expire: %s", id, error)
        return
    if not held:
        await _end(leases, id)


async def _end_others(leases: LeaseManager, purpose: str) -> None:
    """End what earlier attempts left, as what they held is held by the result now."""
    try:
        with context.deadline(CALL_SECONDS):
            left = await leases.list([f'labels."{PURPOSE}"=={json.dumps(purpose)}'])
    except CarinaError as error:
        _log.warning("leases of %s are left to expire: %s", purpose, error)
        return
    for one in left:
        if one.id not in _in_use:
            await _end(leases, one.id)


async def _end(leases: LeaseManager, id: str) -> None:
    try:
        with context.deadline(CALL_SECONDS):
            faults.point("imaged.lease.ending")
            await leases.delete(id)
    except CarinaError as error:
        _log.warning("lease %s is left to expire: %s", id, error)


def first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that the others followed from: the earliest one that is not a cancellation."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [failures]
    while pending:
        one = pending.pop(0)
        if isinstance(one, BaseExceptionGroup):
            pending.extend(one.exceptions)
        else:
            leaves.append(one)
    for leaf in leaves:
        if not isinstance(leaf, asyncio.CancelledError):
            return leaf
    return leaves[0]
