"""Images in archives: an OCI image layout in a tar stream, written and read, and what `docker save` writes, read.

Importing stores every file of the archive under its digest first, then looks at what index.json (or manifest.json)
makes of them. An archive names images only as far as the destination lets it.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from carina import context, faults
from carina.aio.finish import finish
from carina.content import ContentStore
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, NotFound
from carina.images import Image, manifest
from carina.images.manifest import Index
from carina.platforms import Matcher, Platform, host
from carina.transfer import ExtraReference, Store
from imaged.fetch import Fetch, Wish, choose, gc_labels, read_blob
from imaged.ingest import CALL_SECONDS, COMMIT_SECONDS, discard
from imaged.progress import Tracker
from imaged.pull import Stores, lease, names, record, settle
from imaged.tarstream import END, TarStream, header, padding, plain

IMAGE_NAME: Final = "io.containerd.image.name"
REF_NAME: Final = "org.opencontainers.image.ref.name"
MAX_DOCUMENT: Final = manifest.MAX_SIZE
_PIECE: Final = 1 << 20
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


async def load(stores: Stores, archive: AsyncIterator[bytes], into: Store, *, tracker: Tracker) -> list[Image]:
    """Import the images of an archive. The errors are those of `carina.transfer.Transfer.load`."""
    tracker.say("Importing")
    async with lease(stores.leases):
        found = await _read(stores.content, archive)
        if "index.json" in found.documents:
            index = await _index(stores.content, found.documents["index.json"])
        else:
            index = await _docker_index(stores.content, found)
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


async def _index(store: ContentStore, data: bytes) -> tuple[Descriptor, Index]:
    media_type = manifest.media_type_of(data)
    descriptor = Descriptor(media_type=media_type or manifest.OCI_INDEX, digest=Digest.of(data), size=len(data))
    document = manifest.parse(data, descriptor)
    if not isinstance(document, Index):
        raise InvalidArgument("index.json of the archive is not an index")
    await _put(store, data, gc_labels(document))
    return descriptor, document


async def _docker_index(store: ContentStore, found: _Archive) -> tuple[Descriptor, Index]:
    """Manifests for what `docker save` describes in its own way."""
    try:
        described = msgspec.json.decode(found.documents["manifest.json"], type=list[_DockerImage])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"manifest.json of the archive is malformed: {error}") from error
    entries = []
    for one in described[: manifest.MAX_MANIFESTS]:
        config = replace(found.find(one.config), media_type=manifest.DOCKER_CONFIG)
        layers = [await _layer(store, found.find(path)) for path in one.layers[: manifest.MAX_LAYERS]]
        document = {
            "schemaVersion": 2,
            "mediaType": manifest.DOCKER_MANIFEST,
            "config": _json(config),
            "layers": [_json(layer) for layer in layers],
        }
        data = json.dumps(document).encode()
        made = Descriptor(media_type=manifest.DOCKER_MANIFEST, digest=Digest.of(data), size=len(data))
        await _put(store, data, gc_labels(manifest.parse(data, made)))
        entries += [{**_json(made), "annotations": {IMAGE_NAME: tag}} for tag in one.repo_tags or [""]]
    return await _index(store, json.dumps({"schemaVersion": 2, "manifests": entries}).encode())


async def _layer(store: ContentStore, layer: Descriptor) -> Descriptor:
    with context.deadline(CALL_SECONDS):
        async with await store.reader(layer.digest) as reader:
            head = await reader.read(0, 4)
    suffix = ".gzip" if head.startswith(b"\x1f\x8b") else ""
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


async def save(
    stores: Stores, source: Store, platforms: Sequence[Platform], *, tracker: Tracker
) -> AsyncGenerator[bytes, None]:
    """The images of `source` as an OCI layout in a tar stream, with what `docker load` wants to see besides."""
    wanted = [*([source.name] if source.name else []), *(one.name for one in source.extra_references)]
    if not wanted:
        raise InvalidArgument("the source names no image")
    blobs: dict[Digest, Descriptor] = {}
    entries: list[dict[str, Any]] = []
    docker: list[dict[str, Any]] = []
    for name in wanted:
        with context.deadline(CALL_SECONDS):
            image = await stores.images.get(name)
        export = _Export(stores.content, Wish(platforms=tuple(platforms)), name)
        await export.walk(image.target, 0)
        blobs |= export.blobs
        tag = name.partition("@")[0].rpartition(":")[2] if ":" in name.rpartition("/")[2] else ""
        annotations = {**image.target.annotations, IMAGE_NAME: name, **({REF_NAME: tag} if tag else {})}
        entries.append({**_json(image.target), "annotations": annotations})
        docker += export.docker(name)
    index = {"schemaVersion": 2, "mediaType": manifest.OCI_INDEX, "manifests": entries}
    yield _document("oci-layout", {"imageLayoutVersion": "1.0.0"})
    yield _document("index.json", index)
    if docker:
        yield _document("manifest.json", docker)
    for descriptor in blobs.values():
        tracker.step("exporting", descriptor, 0)
        async with aclosing(_blob(stores.content, descriptor)) as chunks:
            async for chunk in chunks:
                yield chunk
        tracker.step("complete", descriptor)
    yield END


class _Export:
    """Goes through one image and notes the content to write."""

    def __init__(self, store: ContentStore, wish: Wish, name: str) -> None:
        self._store = store
        self._wish = wish
        self._name = name
        self._images: list[tuple[Platform, Descriptor, tuple[Descriptor, ...]]] = []
        self.blobs: dict[Digest, Descriptor] = {}

    async def walk(self, descriptor: Descriptor, depth: int) -> None:
        data = await read_blob(self._store, descriptor)
        if data is None:
            raise NotFound(f"image {self._name}: content {descriptor.digest} is not there")
        if depth > manifest.MAX_DEPTH:
            raise InvalidArgument(f"image {self._name}: indexes are nested too deeply")
        document = manifest.parse(data, descriptor)
        self.blobs[descriptor.digest] = descriptor
        if isinstance(document, Index):
            await self._children(document, depth)
            return
        for child in document.children:
            with context.deadline(CALL_SECONDS):
                await self._store.info(child.digest)
            self.blobs[child.digest] = child
        config = await read_blob(self._store, document.config)
        if config is not None and manifest.is_config(document.config.media_type):
            platform = manifest.parse_config(config, document.config).platform
            self._images.append((platform, document.config, document.layers))

    async def _children(self, document: Index, depth: int) -> None:
        count, missing = len(self._images), None
        for child, _ in choose(document, self._wish, name=self._name):
            try:
                await self.walk(child, depth + 1)
            except NotFound as error:
                # A pull of one platform leaves the others out; so does an export of all that is there.
                self.blobs.pop(child.digest, None)
                missing = error
        if missing is not None and count == len(self._images):
            raise missing

    def docker(self, name: str) -> list[dict[str, Any]]:
        """The entry of manifest.json, of the image that suits this machine best."""
        matcher = Matcher.only(host())
        ranked = [(matcher.rank(one[0]), at) for at, one in enumerate(self._images)]
        chosen = min(((rank, at) for rank, at in ranked if rank is not None), default=None)
        if chosen is None:
            return []
        _, config, layers = self._images[chosen[1]]
        return [{"Config": _path(config), "RepoTags": [name], "Layers": [_path(layer) for layer in layers]}]


async def _blob(store: ContentStore, descriptor: Descriptor) -> AsyncGenerator[bytes, None]:
    with context.deadline(CALL_SECONDS):
        reader = await store.reader(descriptor.digest)
    async with reader:
        yield header(_path(descriptor), reader.size)
        offset = 0
        while offset < reader.size:
            with context.deadline(CALL_SECONDS):
                chunk = await reader.read(offset, min(_PIECE, reader.size - offset))
            if not chunk:
                raise DataLoss(f"content {descriptor.digest} ends after {offset} of {reader.size} bytes")
            offset += len(chunk)
            yield chunk
        yield padding(reader.size)


def _document(name: str, value: object) -> bytes:
    data = json.dumps(value).encode()
    return header(name, len(data)) + data + padding(len(data))


def _path(descriptor: Descriptor) -> str:
    return f"blobs/{descriptor.digest.algorithm}/{descriptor.digest.hex}"


def _json(descriptor: Descriptor) -> dict[str, Any]:
    return {"mediaType": descriptor.media_type, "digest": str(descriptor.digest), "size": descriptor.size}


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
