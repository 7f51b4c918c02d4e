"""What an image holds, read from the content store, and its layers made into snapshots."""

import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

from carina import labels, platforms
from carina.aio.finish import finish, or_undo
from carina.content import ContentStore, Info
from carina.descriptor import Descriptor
from carina.diff import Differ
from carina.digest import Digest
from carina.errors import AlreadyExists, DataLoss, NotFound, ResourceExhausted
from carina.images import Image
from carina.images.manifest import Config, Index, Manifest, chain_ids, is_index, is_manifest, parse, parse_config
from carina.snapshots import Snapshotter

MAX_DOCUMENT = 4 * 1024 * 1024
"""Bytes of a manifest, index or configuration."""
MAX_DEPTH = 4
"""Indexes within indexes."""


async def read(content: ContentStore, descriptor: Descriptor) -> bytes:
    """The whole of a small blob.

    Raises:
        NotFound: it is not in the store.
        ResourceExhausted: it is larger than 4 MiB.
    """
    async with await content.reader(descriptor.digest) as reader:
        if reader.size > MAX_DOCUMENT:
            raise ResourceExhausted(f"content {descriptor.digest} has {reader.size} bytes, more than {MAX_DOCUMENT}")
        return await reader.read(0, reader.size)


async def manifest_of(
    content: ContentStore, image: Image, matcher: platforms.Matcher | None = None
) -> tuple[Descriptor, Manifest]:
    """The manifest for a platform, this machine's by default.

    Raises:
        NotFound: the image has none for that platform, or its content is not there.
    """
    matcher = matcher or platforms.Matcher.only(platforms.host())
    descriptor = image.target
    for _ in range(MAX_DEPTH):
        document = parse(await read(content, descriptor), descriptor)
        if isinstance(document, Manifest):
            return descriptor, document
        descriptor = _choose(document, matcher, image.name)
    raise DataLoss(f"image {image.name}: indexes are nested deeper than {MAX_DEPTH}")


def _choose(index: Index, matcher: platforms.Matcher, name: str) -> Descriptor:
    ranked = []
    for position, entry in enumerate(index.manifests):
        rank = 0 if entry.platform is None else matcher.rank(entry.platform)
        if rank is not None:
            ranked.append((entry.platform is None, rank, position, entry.descriptor))
    if not ranked:
        wanted = ", ".join(map(str, matcher.accepted[:1])) or "any platform"
        raise NotFound(f"image {name} has no manifest for {wanted}")
    return min(ranked, key=lambda one: one[:3])[3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What an image is on one platform."""

    manifest: Manifest
    config: Config


async def describe(content: ContentStore, image: Image, matcher: platforms.Matcher | None = None) -> Described:
    """Read manifest and configuration for a platform, this machine's by default.

    Raises:
        NotFound: the image has none for that platform, or its content is not there.
        DataLoss: they don't agree on the number of layers.
    """
    _, manifest = await manifest_of(content, image, matcher)
    config = parse_config(await read(content, manifest.config), manifest.config)
    if len(config.diff_ids) != len(manifest.layers):
        raise DataLoss(f"image {image.name}: {len(manifest.layers)} layers but {len(config.diff_ids)} diff ids")
    return Described(manifest=manifest, config=config)


async def walk(content: ContentStore, root: Descriptor) -> AsyncIterator[tuple[Descriptor, int]]:
    """Every descriptor of an image with its depth, top first, those included whose content is not there.

    What is referred to again and again is followed once: few small indexes could name billions of descriptors.
    """
    stack = [(root, 0)]
    followed: set[Digest] = set()
    while stack:
        descriptor, depth = stack.pop()
        yield descriptor, depth
        if descriptor.digest in followed:
            continue
        followed.add(descriptor.digest)
        try:
            document = parse(await read(content, descriptor), descriptor) if _has_children(descriptor) else None
        except NotFound:
            continue
        if document and depth < MAX_DEPTH + 1:
            stack += [(child, depth + 1) for child in reversed(document.children)]


def _has_children(descriptor: Descriptor) -> bool:
    return is_index(descriptor.media_type) or is_manifest(descriptor.media_type)


async def unpack(
    content: ContentStore, snapshotter: Snapshotter, differ: Differ, image: Described, *, name: str
) -> str:
    """Make an image's layers snapshots of `snapshotter`, called `name`, those that are not yet.

    Returns:
        The key of the top one; empty for an image without layers.

    Raises:
        DataLoss: a layer is not what the image's configuration says.
    """
    chain = chain_ids(image.config.diff_ids)
    if not chain or await _exists(snapshotter, chain[-1]):
        return chain[-1] if chain else ""
    parent = ""
    for layer, diff_id, key in zip(image.manifest.layers, image.config.diff_ids, chain, strict=True):
        if not await _exists(snapshotter, key):
            await _apply(snapshotter, differ, layer, diff_id, key, parent)
        parent = key
    label = f"{labels.GC_REF_SNAPSHOT}.{name}"
    await content.update(Info(digest=image.manifest.config.digest, labels={label: parent}), [f"labels.{label}"])
    return parent


async def _exists(snapshotter: Snapshotter, key: str) -> bool:
    try:
        await snapshotter.stat(key)
    except NotFound:
        return False
    return True


async def _apply(
    snapshotter: Snapshotter, differ: Differ, layer: Descriptor, diff_id: Digest, chain: Digest, parent: str
) -> None:
    key = f"extract-{secrets.token_hex(8)} {chain}"
    mounts = await or_undo(snapshotter.prepare(key, parent), lambda _: snapshotter.remove(key))
    try:
        applied = await differ.apply(layer, mounts)
        if applied.digest != diff_id:
            raise DataLoss(f"layer {layer.digest} unpacks to {applied.digest}, the image says {diff_id}")
        # To its end even if nobody waits for it any more: what is cut off may have happened or not.
        await finish(snapshotter.commit(chain, key))
    except BaseException as error:
        with contextlib.suppress(NotFound):
            await finish(snapshotter.remove(key))
        if not isinstance(error, AlreadyExists):
            raise
