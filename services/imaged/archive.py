"""Images out of archives: an OCI image layout in a tar stream, and what `docker save` writes.

An import stores every file of the archive under its digest first, then looks at what index.json (or manifest.json)
makes of them. An archive names images only as far as the destination lets it.
"""

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from carina import context, faults
from carina.aio.finish import finish
from carina.content import ContentStore, DescriptorLane
from carina.content.recompress import recompressed
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, Unimplemented
from carina.images import Image, manifest
from carina.images.manifest import Index
from carina.reference import normalize
from carina.transfer import ExtraReference, Store
from imaged.fetch import Fetch, Wish, gc_labels
from imaged.ingest import CALL_SECONDS, COMMIT_SECONDS, discard, write_pipe
from imaged.progress import Tracker
from imaged.pull import Stores, lease, names, record, settle
from imaged.tarstream import TarStream, plain

IMAGE_NAME: Final = "io.containerd.image.name"
REF_NAME: Final = "org.opencontainers.image.ref.name"
MAX_DOCUMENT: Final = manifest.MAX_SIZE
_LARGE: Final = 1 << 20
"""Bytes of a file from which on a pipe is worth its calls."""
_DOCUMENTS: Final = frozenset(("index.json", "manifest.json", "oci-layout", "repositories", "version"))


@dataclass(slots=True)
class _Archive:
    """What was found in an archive."""

    documents: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, Descriptor] = field(default_factory=dict)
    """Path -> content; the media type is not known yet."""
    links: dict[str, str] = field(default_factory=dict)

    def find(self, path: str) -> Descriptor:
        for _ in range(8):
            if path in self.files:
                return self.files[path]
            if path not in self.links:
                break
            path = _resolve(path, self.links[path])
        raise InvalidArgument(f"the archive names {path[:200]!r}, which is not in it")


class _DockerImage(msgspec.Struct, rename="pascal"):
    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


async def load(
    stores: Stores, archive: AsyncIterator[bytes], into: Store, *, compress: bool = False, tracker: Tracker
) -> list[Image]:
    """Import the images of an archive. The errors are those of `carina.transfer.Transfer.load`."""
    tracker.say("Importing")
    async with lease(stores.leases):
        found = await _read(stores.content, archive)
        if "index.json" in found.documents:
            index = await _index(stores.content, found.documents["index.json"])
        else:
            index = await _docker_index(stores.content, found, compress=compress)
        images: list[Image] = []
        for descriptor, wanted in _targets(index, into):
            await _settle(stores, descriptor, into, tracker=tracker)
            images += await record(stores.images, replace(descriptor, annotations={}), wanted, into.labels)
        if not images:
            raise InvalidArgument("the archive names no image that the destination takes")
        for image in images:
            tracker.say("saved", name=image.name, descriptor=image.target)
        tracker.say("Completed import")
    return images


async def _settle(stores: Stores, root: Descriptor, into: Store, *, tracker: Tracker) -> None:
    fetch = Fetch(
        name=root.annotations.get(IMAGE_NAME) or into.name or str(root.digest),
        store=stores.content,
        fetcher=None,
        tracker=tracker,
        locks=stores.locks,
        slots=asyncio.Semaphore(stores.downloads),
    )
    wish = Wish(platforms=into.platforms, all_metadata=into.all_metadata, limit=into.manifest_limit)
    found = await fetch.documents(root, wish)
    await settle(stores, [one for one in found if one.wanted], into, tracker=tracker, blob=fetch.blob)


async def _read(store: ContentStore, chunks: AsyncIterator[bytes]) -> _Archive:
    found = _Archive()
    stream = TarStream(plain(chunks))
    async with aclosing(stream.members()) as members:
        async for member in members:
            path = member.name.removeprefix("./")
            if member.link:
                found.links[path] = member.link
            elif not member.is_file:
                continue
            elif path in _DOCUMENTS:
                if member.size > MAX_DOCUMENT:
                    raise InvalidArgument(f"{path} of the archive has {member.size} bytes, more than {MAX_DOCUMENT}")
                found.documents[path] = b"".join([chunk async for chunk in stream.data()])
            else:
                found.files[path] = await _file(store, path, member.size, stream)
    if not found.documents.keys() & {"index.json", "manifest.json"}:
        raise InvalidArgument("the archive is not an image archive: it has neither index.json nor manifest.json")
    return found


async def _file(store: ContentStore, path: str, size: int, stream: TarStream) -> Descriptor:
    """Store one file; one under blobs/ must be what its name says."""
    parts = path.split("/")
    expected = Digest(f"{parts[1]}:{parts[2]}") if len(parts) == 3 and parts[0] == "blobs" else None
    ref = f"import-{secrets.token_hex(12)}"
    try:
        if expected is not None and size >= _LARGE:
            await _by_pipe(store, ref, Descriptor(media_type="", digest=expected, size=size), stream)
        with context.deadline(CALL_SECONDS):
            writer = await store.writer(ref, total=size, expected=expected)
        async with writer:
            async with aclosing(stream.data()) as chunks:
                async for chunk in chunks:
                    await writer.write(chunk)
            digest = expected or await writer.digest()
            with context.deadline(COMMIT_SECONDS):
                await writer.commit(size=size, expected=digest)
            faults.point("imaged.archive.committed")
    except AlreadyExists:
        digest = expected or digest
    except FailedPrecondition as error:
        await discard(store, ref)
        raise DataLoss(f"{path} of the archive is not the content that its name says: {error}") from error
    except BaseException:
        await finish(discard(store, ref))
        raise
    return Descriptor(media_type="", digest=digest, size=size)


async def _by_pipe(store: ContentStore, ref: str, file: Descriptor, stream: TarStream) -> None:
    """Move a file's bytes into an ingest through a pipe, if the store has one to offer."""
    if not isinstance(store, DescriptorLane):
        return
    try:
        with context.deadline(CALL_SECONDS):
            fd, _ = await store.open_ingest(ref, total=file.size, expected=file.digest)
    except Unimplemented:
        return
    try:
        os.set_blocking(fd, False)
        async with aclosing(stream.data()) as chunks:
            async for chunk in chunks:
                await write_pipe(fd, chunk, file)
    finally:
        os.close(fd)


async def _index(store: ContentStore, data: bytes) -> tuple[Descriptor, Index]:
    media_type = manifest.media_type_of(data)
    descriptor = Descriptor(media_type=media_type or manifest.OCI_INDEX, digest=Digest.of(data), size=len(data))
    document = manifest.parse(data, descriptor)
    if not isinstance(document, Index):
        raise InvalidArgument("index.json of the archive is not an index")
    await _put(store, data, gc_labels(document))
    return descriptor, document


async def _docker_index(store: ContentStore, found: _Archive, *, compress: bool) -> tuple[Descriptor, Index]:
    """Manifests for what `docker save` describes in its own way."""
    try:
        images = msgspec.json.decode(found.documents["manifest.json"], type=list[_DockerImage])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"manifest.json of the archive is malformed: {error}") from error
    entries = []
    for one in images[: manifest.MAX_MANIFESTS]:
        config = replace(found.find(one.config), media_type=manifest.DOCKER_CONFIG)
        layers = [
            await _layer(store, found.find(path), compress=compress) for path in one.layers[: manifest.MAX_LAYERS]
        ]
        document = {
            "schemaVersion": 2,
            "mediaType": manifest.DOCKER_MANIFEST,
            "config": described(config),
            "layers": [described(layer) for layer in layers],
        }
        data = _compact(document)
        made = Descriptor(media_type=manifest.DOCKER_MANIFEST, digest=Digest.of(data), size=len(data))
        await _put(store, data, gc_labels(manifest.parse(data, made)))
        entries += [{**described(made), **_named(tag)} for tag in one.repo_tags or [""]]
    return await _index(store, _compact({"schemaVersion": 2, "manifests": entries}))


def _named(tag: str) -> dict[str, Any]:
    """What an index says of an image that Docker calls `tag`."""
    if not tag:
        return {}
    full = normalize(tag)
    return {"annotations": {IMAGE_NAME: str(full), REF_NAME: full.object}}


async def _layer(store: ContentStore, layer: Descriptor, *, compress: bool) -> Descriptor:
    with context.deadline(CALL_SECONDS):
        async with await store.reader(layer.digest) as reader:
            head = await reader.read(0, 4)
    suffix = ".gzip" if head.startswith(b"\x1f\x8b") else ".zstd" if head.startswith(b"\x28\xb5\x2f\xfd") else ""
    if compress and not suffix:
        made = await recompressed(store, layer.digest, "gzip")
        layer, suffix = replace(layer, digest=made.digest, size=made.size), ".gzip"
    return replace(layer, media_type=f"{manifest.DOCKER_LAYER}{suffix}")


async def _put(store: ContentStore, data: bytes, labels: Mapping[str, str]) -> None:
    digest = Digest.of(data)
    try:
        with context.deadline(COMMIT_SECONDS):
            async with await store.writer(f"import-{digest}", total=len(data), expected=digest) as writer:
                await writer.truncate(0)
                await writer.write(data)
                await writer.commit(size=len(data), expected=digest, labels=labels)
    except AlreadyExists:
        pass


def _targets(index: tuple[Descriptor, Index], into: Store) -> list[tuple[Descriptor, list[str]]]:
    """What to record, and under which names: the index as the destination says, its entries as they say themselves."""
    root, document = index
    found: list[tuple[Descriptor, list[str]]] = []
    if into.name or any(not one.is_prefix for one in into.extra_references):
        found.append((root, names(into, root)))
    prefixes = [one for one in into.extra_references if one.is_prefix]
    for entry in document.manifests:
        wanted = [name for one in prefixes for name in _prefixed(entry.descriptor, one)]
        if wanted:
            found.append((entry.descriptor, list(dict.fromkeys(wanted))))
    return found


def _prefixed(descriptor: Descriptor, prefix: ExtraReference) -> list[str]:
    """The names that a prefix makes of an entry's annotations (containerd's rules for imports)."""
    by_digest = f"{prefix.name}@{descriptor.digest}"
    full = descriptor.annotations.get(IMAGE_NAME, "")
    name = full or descriptor.annotations.get(REF_NAME, "")
    if name and set(name) & set("/:@"):
        if not prefix.allow_overwrite and not name.startswith(tuple(f"{prefix.name}{mark}" for mark in "/:@")):
            name = ""
    elif name:
        name = "" if full else f"{prefix.name}:{name}"
    if not name:
        return [by_digest] if prefix.add_digest else []
    return [name, by_digest] if prefix.add_digest and not prefix.skip_named_digest else [name]


def described(descriptor: Descriptor) -> dict[str, Any]:
    """A descriptor as documents have it."""
    return {"mediaType": descriptor.media_type, "digest": str(descriptor.digest), "size": descriptor.size}


def _compact(value: object) -> bytes:
    """JSON as containerd writes it, so that what it makes of an archive has the same digest."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _resolve(path: str, link: str) -> str:
    """Where a link of the archive leads, within the archive."""
    if link.startswith("/") or "/" not in path:
        return link.lstrip("/")
    parts = path.split("/")[:-1]
    for part in link.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)
