"""Stores in memory for tests of what works on them: the interfaces' promises, without files or sockets."""

import gzip
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Self

import zstandard

from carina import labels as label
from carina.content import ContentStore, Info, Reader, Status, Writer
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import AlreadyExists, FailedPrecondition, NotFound, Unavailable
from carina.images import Image
from carina.leases import Lease, Resource
from carina.mount import Mount
from carina.snapshots import Info as Snapshot
from carina.snapshots import Kind, Usage


class MemoryContent:
    """A content store."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.infos: dict[Digest, Info] = {}
        self.ingests: dict[str, bytearray] = {}
        self.open: set[str] = set()

    async def info(self, digest: Digest) -> Info:
        if digest not in self.infos:
            raise NotFound(f"content {digest}: not found")
        return self.infos[digest]

    async def update(self, info: Info, fields: Sequence[str] = ()) -> Info:
        old = await self.info(info.digest)
        found = replace(old, labels=label.changed(old.labels, info.labels, list(fields) or ["labels"]))
        self.infos[info.digest] = found
        return found

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        for info in list(self.infos.values()):
            yield info

    async def delete(self, digest: Digest) -> None:
        await self.info(digest)
        del self.infos[digest], self.blobs[digest]

    async def reader(self, digest: Digest) -> Reader:
        await self.info(digest)
        return MemoryReader(self.blobs[digest])

    async def status(self, ref: str) -> Status:
        if ref not in self.ingests:
            raise NotFound(f"ingest {ref}: not found")
        return Status(ref=ref, offset=len(self.ingests[ref]))

    async def statuses(self, filters: Sequence[str] = ()) -> list[Status]:
        return [await self.status(ref) for ref in self.ingests]

    async def writer(self, ref: str, *, total: int = 0, expected: Digest | None = None) -> Writer:
        if expected in self.blobs:
            raise AlreadyExists(f"content {expected}: already exists")
        if ref in self.open:
            raise Unavailable(f"ingest {ref} is being written")
        return MemoryWriter(self, ref, total)

    async def abort(self, ref: str) -> None:
        await self.status(ref)
        del self.ingests[ref]


class MemoryReader:
    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    async def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    async def close(self) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        pass


class MemoryWriter:
    def __init__(self, store: MemoryContent, ref: str, total: int) -> None:
        self._store, self._ref, self._total = store, ref, total
        self._data = store.ingests.setdefault(ref, bytearray())
        store.open.add(ref)

    @property
    def status(self) -> Status:
        return Status(ref=self._ref, offset=len(self._data), total=self._total)

    async def write(self, data: bytes) -> None:
        self._data += data

    async def truncate(self, offset: int) -> None:
        del self._data[offset:]

    async def commit(
        self, *, size: int = 0, expected: Digest | None = None, labels: Mapping[str, str] | None = None
    ) -> Digest:
        found = Digest.of(bytes(self._data))
        if size and size != len(self._data):
            raise FailedPrecondition(f"ingest {self._ref} has {len(self._data)} bytes, not {size}")
        if expected and found != expected:
            raise FailedPrecondition(f"ingest {self._ref} is {found}, not {expected}")
        del self._store.ingests[self._ref]
        await self.close()
        if found in self._store.blobs:
            raise AlreadyExists(f"content {found}: already exists")
        self._store.blobs[found] = bytes(self._data)
        self._store.infos[found] = Info(digest=found, size=len(self._data), labels=dict(labels or {}))
        return found

    async def digest(self) -> Digest:
        return Digest.of(bytes(self._data))

    async def close(self) -> None:
        self._store.open.discard(self._ref)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.close()


class MemoryImages:
    """Image records."""

    def __init__(self) -> None:
        self.images: dict[str, Image] = {}

    async def get(self, name: str) -> Image:
        if name not in self.images:
            raise NotFound(f"image {name}: not found")
        return self.images[name]

    async def list(self, filters: Sequence[str] = ()) -> Sequence[Image]:
        return list(self.images.values())

    async def create(self, image: Image) -> Image:
        if image.name in self.images:
            raise AlreadyExists(f"image {image.name}: already exists")
        self.images[image.name] = image
        return image

    async def update(self, image: Image, fields: Sequence[str] = ()) -> Image:
        await self.get(image.name)
        self.images[image.name] = image
        return image

    async def delete(self, name: str, *, sync: bool = False, target: Descriptor | None = None) -> None:
        await self.get(name)
        del self.images[name]


class MemoryLeases:
    """Leases that hold nothing."""

    def __init__(self) -> None:
        self.leases: dict[str, Lease] = {}
        self.made: list[Lease] = []

    async def create(self, lease: Lease) -> Lease:
        self.leases[lease.id] = lease
        self.made.append(lease)
        return lease

    async def delete(self, id: str, *, sync: bool = False) -> None:
        if self.leases.pop(id, None) is None:
            raise NotFound(f"lease {id}: not found")

    async def list(self, filters: Sequence[str] = ()) -> Sequence[Lease]:
        return list(self.leases.values())

    async def add_resource(self, id: str, resource: Resource) -> None:
        pass

    async def delete_resource(self, id: str, resource: Resource) -> None:
        pass

    async def resources(self, id: str) -> Sequence[Resource]:
        return []


class MemorySnapshotter:
    """Snapshots without trees."""

    def __init__(self) -> None:
        self.snapshots: dict[str, Snapshot] = {}

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        if key in self.snapshots:
            raise AlreadyExists(f"snapshot {key}: already exists")
        if parent:
            await self.stat(parent)
        self.snapshots[key] = Snapshot(name=key, kind=Kind.ACTIVE, parent=parent, labels=labels or {})
        return [Mount(type="bind", source="/nowhere")]

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return await self.prepare(key, parent, labels)

    async def mounts(self, key: str) -> list[Mount]:
        await self.stat(key)
        return [Mount(type="bind", source="/nowhere")]

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        active = await self.stat(key)
        if name in self.snapshots:
            raise AlreadyExists(f"snapshot {name}: already exists")
        del self.snapshots[key]
        self.snapshots[name] = replace(active, name=name, kind=Kind.COMMITTED, labels=labels or {})

    async def remove(self, key: str) -> None:
        await self.stat(key)
        del self.snapshots[key]

    async def stat(self, key: str) -> Snapshot:
        if key not in self.snapshots:
            raise NotFound(f"snapshot {key}: not found")
        return self.snapshots[key]

    async def update(self, info: Snapshot, fields: Sequence[str] = ()) -> Snapshot:
        return info

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Snapshot]:
        for info in list(self.snapshots.values()):
            yield info

    async def usage(self, key: str) -> Usage:
        return Usage(size=0, inodes=0)

    async def cleanup(self) -> None:
        pass

    async def close(self) -> None:
        pass


class HashingDiffer:
    """Decompresses a layer and says what it is, without a tree to apply it to."""

    def __init__(self, store: ContentStore) -> None:
        self._store = store
        self.applied: list[Digest] = []

    async def apply(
        self,
        layer: Descriptor,
        mounts: Sequence[Mount],
        *,
        sync_fs: bool = True,
        payloads: Mapping[str, bytes] | None = None,
    ) -> Descriptor:
        async with await self._store.reader(layer.digest) as reader:
            data = await reader.read(0, reader.size)
        if layer.media_type.endswith("gzip"):
            data = gzip.decompress(data)
        elif layer.media_type.endswith("zstd"):
            data = zstandard.decompress(data)
        self.applied.append(layer.digest)
        return Descriptor(media_type="application/vnd.oci.image.layer.v1.tar", digest=Digest.of(data), size=len(data))

    async def diff(self, lower: Sequence[Mount], upper: Sequence[Mount], **more: object) -> Descriptor:
        raise NotImplementedError
