"""An image from a registry into the content store: the tree of documents first, then what they name.

Each document gets a label per child, so that the collector keeps what is reachable from the image's record,
and every piece of content one that says where it can be had again.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from carina import context
from carina.aio.locks import KeyedLock
from carina.content import ContentStore, Info
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import AlreadyExists, DataLoss, InvalidArgument, NotFound
from carina.images import manifest
from carina.images.manifest import Config, Index, Manifest
from carina.labels import DISTRIBUTION_SOURCE, GC_REF_CONTENT, MAX_SIZE
from carina.platforms import Matcher, Platform
from imaged.ingest import CALL_SECONDS, COMMIT_SECONDS, discard, ingest, open_writer
from imaged.phases import FETCHED, phase
from imaged.progress import Tracker, ref_key
from imaged.sources import Source

MAX_DOCUMENTS: Final = 2_000
"""Manifests and indexes that one transfer goes through."""
_SHARED_FETCH_SECONDS: Final = 6 * 3600.0
"""How long another transfer that fetches the same content is waited for; it has stall limits of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Which images of an index to take."""

    platforms: tuple[Platform, ...] = ()
    """All where empty."""
    all_metadata: bool = False
    limit: int = 0
    """At most so many manifests of an index; 0: no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One image of the tree."""

    descriptor: Descriptor
    document: Manifest
    config: Config | None
    """None where the manifest is not one of a container image."""
    wanted: bool = True
    """False: metadata only."""


@dataclass(slots=True)
class _Walk:
    wish: Wish
    seen: set[Digest] = field(default_factory=set)
    found: list[Found] = field(default_factory=list)


class Fetch:
    """Fetches the content of one image in one namespace."""

    def __init__(
        self,
        *,
        name: str,
        store: ContentStore,
        fetcher: Source | None,
        tracker: Tracker,
        locks: KeyedLock,
        slots: asyncio.Semaphore,
    ) -> None:
        """Without a fetcher, all that there is must be in the store already. `name` is what errors call the image."""
        self._name = name
        self._store = store
        self._fetcher = fetcher
        self._tracker = tracker
        self._locks = locks
        self._slots = slots
        self._source_key = self._repository = ""
        if fetcher:
            reference = fetcher.reference
            self._source_key = f"{DISTRIBUTION_SOURCE}.{reference.hostname}"
            self._repository = reference.repository

    async def documents(self, root: Descriptor, wish: Wish) -> list[Found]:
        """Fetch indexes, manifests and configurations below `root`, and return the images that are wanted.

        Raises:
            NotFound: an index has nothing for the platforms that are wanted.
            InvalidArgument: a document is not what it should be, or there are too many.
        """
        walk = _Walk(wish)
        await self._walk(root, walk, depth=0, wanted=True)
        return walk.found

    async def blob(self, descriptor: Descriptor) -> None:
        """Fetch a layer, or whatever else a manifest names."""
        self._tracker.step("waiting", descriptor, 0)
        fetcher = self._fetcher
        if fetcher is None:
            await self._label(descriptor.digest, {})
            return
        async with self._locks.hold(self._key(descriptor), seconds=_SHARED_FETCH_SECONDS), self._slots:
            new = await self._ingest(descriptor, fetcher)
            if not new:
                await self._label(descriptor.digest, {})
        self._tracker.step("complete" if new else "already exists", descriptor)

    async def _ingest(self, descriptor: Descriptor, fetcher: Source) -> bool:
        """Whether it was not there."""
        with phase("fetch", digest=str(descriptor.digest), size=descriptor.size):
            new = await ingest(
                self._store,
                descriptor,
                lambda offset: fetcher.stream(descriptor, offset),
                origin=fetcher.name,
                distrust=lambda: fetcher.distrust(descriptor),
                labels=self._source_labels(),
                moved=lambda offset: self._tracker.moved("downloading", descriptor, offset),
            )
        if new:
            FETCHED.add(amount=descriptor.size)
        return new

    async def _walk(self, descriptor: Descriptor, walk: _Walk, *, depth: int, wanted: bool) -> None:
        if descriptor.digest in walk.seen:
            return
        walk.seen.add(descriptor.digest)
        if depth > manifest.MAX_DEPTH or len(walk.seen) > MAX_DOCUMENTS:
            raise InvalidArgument(f"index {descriptor.digest} is nested too deeply, or there are too many manifests")
        document = await self._document(descriptor)
        self._tracker.children(descriptor, document.children)
        if isinstance(document, Manifest):
            config = await self._config(document)
            walk.found.append(Found(descriptor=descriptor, document=document, config=config, wanted=wanted))
            return
        missing: NotFound | None = None
        for child, take in choose(document, walk.wish, name=self._name):
            try:
                if manifest.is_index(child.media_type) or manifest.is_manifest(child.media_type):
                    await self._walk(child, walk, depth=depth + 1, wanted=wanted and take)
                elif take:
                    await self.blob(child)
            except NotFound as error:
                if self._fetcher:
                    raise
                missing = error  # an archive holds those platforms that were exported
        if missing and not walk.found:
            raise missing

    async def _document(self, descriptor: Descriptor) -> Index | Manifest:
        if descriptor.media_type == manifest.DOCKER_SCHEMA1:
            raise InvalidArgument(f"manifest {descriptor.digest} is of Docker's schema 1, which is not supported")
        data, new = await self._small(descriptor)
        document = manifest.parse(data, descriptor)
        await self._keep(descriptor, data, new, gc_labels(document))
        return document

    async def _config(self, document: Manifest) -> Config | None:
        descriptor = document.config
        data, new = await self._small(descriptor)
        await self._keep(descriptor, data, new, {})
        if not (manifest.is_config(descriptor.media_type) or descriptor.media_type == "application/octet-stream"):
            return None
        return manifest.parse_config(data, descriptor)

    async def _small(self, descriptor: Descriptor) -> tuple[bytes, bool]:
        """A document's bytes, verified, and whether they came from the registry just now."""
        if descriptor.size > manifest.MAX_SIZE:
            raise InvalidArgument(
                f"document {descriptor.digest} has {descriptor.size} bytes, more than {manifest.MAX_SIZE}"
            )
        self._tracker.step("waiting", descriptor, 0)
        data = await read_blob(self._store, descriptor)
        if data is not None:
            return data, False
        if self._fetcher is None:
            raise NotFound(f"{self._name}: content {descriptor.digest} is not there")
        while True:
            async with self._slots:
                data = await self._fetcher.read(descriptor)
            if len(data) == descriptor.size and Digest.of(data, descriptor.digest.algorithm) == descriptor.digest:
                return data, True
            if self._fetcher.distrust(descriptor):
                continue
            raise DataLoss(
                f"{self._fetcher.name}: the {len(data)} bytes of {descriptor.digest}"
                f" are not those that its descriptor names"
            )

    async def _keep(self, descriptor: Descriptor, data: bytes, new: bool, labels: Mapping[str, str]) -> None:
        """Store a document with its labels; one that is there already gets those that it lacks, and the lease."""
        wanted = {**labels, **self._source_labels()}
        async with self._locks.hold(self._key(descriptor), seconds=_SHARED_FETCH_SECONDS):
            try:
                await self._write(descriptor, data, wanted)
            except AlreadyExists:
                await self._label(descriptor.digest, labels)
        self._tracker.step("complete" if new else "already exists", descriptor)

    async def _write(self, descriptor: Descriptor, data: bytes, labels: Mapping[str, str]) -> None:
        writer = await open_writer(self._store, descriptor)
        committed = False
        try:
            async with writer:
                if writer.status.offset:
                    await writer.truncate(0)
                if data:
                    await writer.write(data)
                with context.deadline(COMMIT_SECONDS):
                    await writer.commit(size=len(data), expected=descriptor.digest, labels=labels)
                committed = True
        except AlreadyExists:
            committed = True
            raise
        finally:
            if not committed:
                await discard(self._store, ref_key(descriptor))

    async def _label(self, digest: Digest, labels: Mapping[str, str]) -> None:
        """Add the labels that content lacks, and this repository to the places where it can be had."""
        with context.deadline(CALL_SECONDS):
            info = await self._store.info(digest)
            wanted = dict(labels)
            known = [part for part in info.labels.get(self._source_key, "").split(",") if part]
            if self._repository and self._repository not in known:
                text = ",".join(sorted({*known, self._repository}))
                if len(self._source_key.encode()) + len(text.encode()) <= MAX_SIZE:
                    wanted[self._source_key] = text
            wanted = {key: value for key, value in wanted.items() if info.labels.get(key) != value}
            if wanted:
                await self._store.update(Info(digest=digest, labels=wanted), fields=[f"labels.{key}" for key in wanted])

    def _source_labels(self) -> dict[str, str]:
        return {self._source_key: self._repository} if self._source_key else {}

    def _key(self, descriptor: Descriptor) -> str:
        return f"{context.current().namespace} {descriptor.digest}"


async def read_blob(store: ContentStore, descriptor: Descriptor) -> bytes | None:
    """A small blob from the store; None where it is not there, or is not of the descriptor's size."""
    try:
        with context.deadline(CALL_SECONDS):
            reader = await store.reader(descriptor.digest)
            async with reader:
                if reader.size != descriptor.size:
                    raise InvalidArgument(
                        f"content {descriptor.digest} has {reader.size} bytes, its descriptor says {descriptor.size}"
                    )
                data = bytearray()
                while len(data) < reader.size:
                    chunk = await reader.read(len(data), reader.size - len(data))
                    if not chunk:
                        break
                    data += chunk
                return bytes(data)
    except NotFound:
        return None


def gc_labels(document: Index | Manifest) -> dict[str, str]:
    """The labels by which a document keeps its children, named as containerd names them: `m.N`, `config`, `l.N`."""
    counts: dict[str, int] = {}
    labels = {}
    for child in document.children:
        if manifest.is_index(child.media_type) or manifest.is_manifest(child.media_type):
            kind = "m."
        elif manifest.is_layer(child.media_type):
            kind = "l."
        elif manifest.is_config(child.media_type):
            kind = "config"
        else:
            kind = ""
        count = counts.get(kind, 0)
        counts[kind] = count + 1
        name = kind if kind == "config" and not count else f"{kind}{count}"
        labels[f"{GC_REF_CONTENT}.{name}"] = str(child.digest)
    return labels


def choose(index: Index, wish: Wish, *, name: str) -> list[tuple[Descriptor, bool]]:
    """The children of an index to go to, best first, and whether all of each is wanted or its metadata only.

    Raises:
        NotFound: none is for a platform that is wanted.
    """
    ranked = _ranked(index, Matcher.exactly(*wish.platforms))
    if not ranked and wish.platforms:
        # No exact match: the best of what such a machine also runs.
        ranked = _ranked(index, Matcher.only(*wish.platforms))[:1]
    if not ranked:
        have = ", ".join(sorted({str(entry.platform) for entry in index.manifests if entry.platform})) or "none"
        wanted = ", ".join(str(platform) for platform in wish.platforms) or "any"
        raise NotFound(f"{name}: no image for platform {wanted}: the index has {have}")
    ranked = ranked[: wish.limit] if wish.limit else ranked
    chosen = {at for _, at in ranked}
    children: list[tuple[Descriptor, bool]] = [(index.manifests[at].descriptor, True) for _, at in ranked]
    if wish.all_metadata:
        children += [(e.descriptor, False) for at, e in enumerate(index.manifests) if at not in chosen]
    return children


def _ranked(index: Index, matcher: Matcher) -> list[tuple[int, int]]:
    found: Sequence[tuple[int, int]] = [
        (rank, at)
        for at, entry in enumerate(index.manifests)
        if (rank := len(matcher.accepted) if entry.platform is None else matcher.rank(entry.platform)) is not None
    ]
    return sorted(found)
