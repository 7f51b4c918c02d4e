"""Pushing: an image of the store into a registry, what it refers to before what refers to it.

Blobs go side by side; manifests follow when their blobs are there, indexes after their manifests, and the tag last,
so that a registry never has a name for something incomplete.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from carina import context
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import InvalidArgument, NotFound
from carina.images import Image, manifest
from carina.images.manifest import Index
from carina.labels import DISTRIBUTION_SOURCE
from carina.platforms import Platform
from carina.reference import REPOSITORY, Reference
from carina.transfer import Store
from imaged.fetch import MAX_DOCUMENTS, Wish, choose, read_blob
from imaged.ingest import CALL_SECONDS
from imaged.progress import Tracker
from imaged.pull import Stores, first
from imaged.sources import Destination, Resolver


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    descriptor: Descriptor
    data: bytes


@dataclass(slots=True)
class _Plan:
    """What a push brings, in order."""

    documents: dict[Digest, _Document] = field(default_factory=dict)
    """Children before those that refer to them; the root last."""
    blobs: dict[Digest, Descriptor] = field(default_factory=dict)


async def push(stores: Stores, resolver: Resolver, source: Store, *, tracker: Tracker) -> None:
    """Put the image `source` where `resolver`'s reference says. The errors are those of `Transfer.push`."""
    reference = resolver.reference
    destination = resolver.title
    tracker.say(f"Pushing to {destination}")
    with context.deadline(CALL_SECONDS):
        image = await stores.images.get(source.name)
    tracker.say("pushing content", name=image.name, descriptor=image.target)
    root = await _root(stores, image, source.platforms)
    if reference.digest and reference.digest != root.descriptor.digest:
        raise InvalidArgument(f"image {image.name} is {root.descriptor.digest}, it can't be pushed as {reference}")
    plan = _Plan()
    await _plan(stores, image.name, root, plan, tracker=tracker)
    pusher = resolver.destination(stores.content)
    await _blobs(stores, pusher, reference, plan, tracker=tracker)
    for document in plan.documents.values():
        name = reference.tag if document.descriptor.digest == root.descriptor.digest else ""
        if await pusher.has(document.descriptor, name):
            tracker.step("already exists", document.descriptor)
        else:
            await pusher.document(document.descriptor, document.data, name)
            tracker.step("complete", document.descriptor)
    tracker.say("pushed content", name=image.name, descriptor=root.descriptor)
    tracker.say(f"Completed push to {destination}", descriptor=root.descriptor)


async def _root(stores: Stores, image: Image, platforms: Sequence[Platform]) -> _Document:
    """What is pushed under the name: the image, the manifest of one platform, or an index of some of them."""
    data = await _read(stores, image.target, image.name)
    document = manifest.parse(data, image.target)
    if not platforms or not isinstance(document, Index):
        return _Document(descriptor=image.target, data=data)
    chosen = [child for child, _ in choose(document, Wish(platforms=tuple(platforms)), name=image.name)]
    if len(chosen) == 1:
        return _Document(descriptor=chosen[0], data=await _read(stores, chosen[0], image.name))
    return subset(data, image.target, {child.digest for child in chosen})


def subset(data: bytes, descriptor: Descriptor, wanted: set[Digest]) -> _Document:
    """An index with some of the entries of another one, which are left as they are."""
    document: dict[str, Any] = json.loads(data)
    document["manifests"] = [one for one in document["manifests"] if one["digest"] in wanted]
    made = json.dumps(document, separators=(",", ":")).encode()
    found = Descriptor(media_type=descriptor.media_type, digest=Digest.of(made), size=len(made))
    return _Document(descriptor=found, data=made)


async def _plan(
    stores: Stores, name: str, document: _Document, plan: _Plan, *, tracker: Tracker, depth: int = 0
) -> None:
    descriptor = document.descriptor
    if depth > manifest.MAX_DEPTH or len(plan.documents) > MAX_DOCUMENTS:
        raise InvalidArgument(f"image {name}: indexes are nested too deeply, or there are too many manifests")
    tracker.step("waiting", descriptor, 0)
    children = manifest.parse(document.data, descriptor).children
    tracker.children(descriptor, children)
    for child in children:
        if child.digest in plan.documents or child.digest in plan.blobs:
            continue
        if manifest.is_index(child.media_type) or manifest.is_manifest(child.media_type):
            below = _Document(descriptor=child, data=await _read(stores, child, name))
            await _plan(stores, name, below, plan, tracker=tracker, depth=depth + 1)
        else:
            plan.blobs[child.digest] = child
    plan.documents[descriptor.digest] = document


async def _read(stores: Stores, descriptor: Descriptor, name: str) -> bytes:
    data = await read_blob(stores.content, descriptor)
    if data is None:
        raise NotFound(
            f"image {name}: content {descriptor.digest} is not here;"
            " name the platforms to push, or pull the image with all of its platforms"
        )
    return data


async def _blobs(stores: Stores, pusher: Destination, reference: Reference, plan: _Plan, *, tracker: Tracker) -> None:
    slots = asyncio.Semaphore(stores.uploads)

    async def one(descriptor: Descriptor) -> None:
        async with slots:
            await _blob(stores, pusher, reference, descriptor, tracker=tracker)

    try:
        async with asyncio.TaskGroup() as group:
            for descriptor in plan.blobs.values():
                tracker.step("waiting", descriptor, 0)
                group.create_task(one(descriptor), name=f"push {descriptor.digest}")
    except BaseExceptionGroup as failures:
        raise first(failures) from None


async def _blob(
    stores: Stores, pusher: Destination, reference: Reference, descriptor: Descriptor, *, tracker: Tracker
) -> None:
    if await pusher.has(descriptor):
        tracker.step("already exists", descriptor)
        return
    try:
        with context.deadline(CALL_SECONDS):
            info = await stores.content.info(descriptor.digest)
    except NotFound:
        if manifest.is_foreign(descriptor.media_type):
            return  # registries do not expect it: who pulls the image gets it where its manifest says
        raise
    key = f"{DISTRIBUTION_SOURCE}.{reference.hostname}"
    sources = candidates(info.labels.get(key, ""), reference.repository)
    uploaded = await pusher.blob(descriptor, sources, lambda offset: tracker.moved("uploading", descriptor, offset))
    tracker.step("complete" if uploaded else "already exists", descriptor)


def candidates(label: str, repository: str) -> list[str]:
    """The repositories that a blob came from, those first whose names share most components with `repository`."""
    own = repository.split("/")

    def shared(name: str) -> int:
        parts = name.split("/")
        return next((at for at, pair in enumerate(zip(parts, own, strict=False)) if pair[0] != pair[1]), len(parts))

    found = {name for name in label.split(",") if name and name != repository and REPOSITORY.fullmatch(name)}
    return sorted(found, key=lambda name: (-shared(name), name))
