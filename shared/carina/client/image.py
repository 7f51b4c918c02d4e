"""What an image holds, read from the content store, and its layers made into snapshots."""

import secrets
from collections.abc import AsyncIterator

from carina import labels, platforms
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


async def config_of(content: ContentStore, image: Image, matcher: platforms.Matcher | None = None) -> Config:
    """The configuration for a platform, this machine's by default."""
    _, manifest = await manifest_of(content, image, matcher)
    return parse_config(await read(content, manifest.config), manifest.config)


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


async def unpack(content: ContentStore, snapshotter: Snapshotter, differ: Differ, name: str, image: Image) -> Digest:
    """Make an image's layers snapshots of `snapshotter` (`name`), those that are not yet; returns the top one's name.

    Raises:
        DataLoss: a layer is not what the image's configuration says.
    """
    _, manifest = await manifest_of(content, image)
    config = parse_config(await read(content, manifest.config), manifest.config)
    if len(config.diff_ids) != len(manifest.layers):
        raise DataLoss(f"image {image.name}: {len(manifest.layers)} layers but {len(config.diff_ids)} diff ids")
    parent = ""
    for layer, diff_id, chain in zip(manifest.layers, config.diff_ids, chain_ids(config.diff_ids), strict=True):
        try:
            await snapshotter.stat(chain)
        except NotFound:
            await _apply(snapshotter, differ, layer, diff_id, chain, parent)
        parent = chain
    key = f"{labels.GC_REF_SNAPSHOT}.{name}"
    await content.update(Info(digest=manifest.config.digest, labels={key: parent}), [f"labels.{key}"])
    return Digest(parent)


async def _apply(
    snapshotter: Snapshotter, differ: Differ, layer: Descriptor, diff_id: Digest, chain: Digest, parent: str
) -> None:
    key = f"extract-{secrets.token_hex(8)} {chain}"
    mounts = await snapshotter.prepare(key, parent)
    try:
        applied = await differ.apply(layer, mounts)
        if applied.digest != diff_id:
            raise DataLoss(f"layer {layer.digest} unpacks to {applied.digest}, the image says {diff_id}")
        await snapshotter.commit(chain, key)
    except AlreadyExists:
        await snapshotter.remove(key)
    except BaseException:
        await snapshotter.remove(key)
        raise
