"""What a store lacks, brought to it before a service is moved there: blobs, and committed snapshots parent by parent.

A copy that was cut goes on where it was: what is there is not sent again, and an ingest is continued where it ends.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final

from carina import context
from carina.aio.threads import in_thread
from carina.content import ContentStore, DescriptorLane
from carina.descriptor import Descriptor
from carina.diff import Differ
from carina.digest import Digest
from carina.errors import AlreadyExists, DataLoss, FailedPrecondition, NotFound, Unavailable, Unimplemented
from carina.labels import GC_EXPIRE, SNAPSHOT_REF
from carina.snapshots import Snapshotter
from carina.swap import Blob, Place, Snapshot

CHUNK: Final = 1 << 20
LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
KEPT: Final = timedelta(days=1)
"""How long a layer is kept that a cut copy has left."""
PREFIX: Final = "carina-copy-"
"""How refs and keys begin that a copy makes for its time."""

Moved = Callable[[int], None]
"""Told how many bytes more have arrived."""


@contextmanager
def calling(place: Place) -> Iterator[None]:
    """Calls of the block go to a service at that place."""
    with context.use(context.Call(namespace=place.namespace or "carina", lease=place.lease or None)):
        yield


class ContentCopy:
    """Blobs from one store into another."""

    def __init__(
        self, source: ContentStore, source_place: Place, target: ContentStore, target_place: Place, moved: Moved
    ) -> None:
        self._source, self._source_place = source, source_place
        self._target, self._target_place = target, target_place
        self._moved = moved

    async def copy(self, blob: Blob) -> None:
        """Bring one blob, which the target hashes before it counts.

        Raises:
            NotFound: the source has it no more.
            DataLoss: the bytes are not those that the digest names.
        """
        with suppress(AlreadyExists):
            try:
                await self._bring(blob)
            except FailedPrecondition:  # an older part may be to blame
                with calling(self._target_place), suppress(NotFound):
                    await self._target.abort(_ref(blob))
                try:
                    await self._bring(blob)
                except FailedPrecondition as error:
                    raise DataLoss(f"content {blob.digest} at {self._source_place} is damaged: {error}") from error

    async def _bring(self, blob: Blob) -> None:
        try:
            await self._by_descriptors(blob)
        except Unimplemented:
            await self._by_messages(blob)
        with calling(self._target_place):
            async with await self._target.writer(_ref(blob), total=blob.size, expected=blob.digest) as writer:
                await writer.commit(size=blob.size, expected=blob.digest)

    async def _by_descriptors(self, blob: Blob) -> None:
        """Raises Unimplemented: one of the stores has no lane."""
        if not (isinstance(self._source, DescriptorLane) and isinstance(self._target, DescriptorLane)):
            raise Unimplemented("no descriptor lane")
        with calling(self._source_place):
            source, size = await self._source.open_blob(blob.digest)
        try:
            with calling(self._target_place):
                pipe, offset = await self._target.open_ingest(_ref(blob), total=size, expected=blob.digest)
                if offset > size:
                    os.close(pipe)
                    pipe, offset = await self._target.open_ingest(
                        _ref(blob), total=size, expected=blob.digest, offset=0
                    )
            try:
                await in_thread(_splice, source, pipe, offset, size)
                self._moved(size - offset)
            except OSError as error:
                raise Unavailable(f"content {blob.digest}: the copy was cut: {error.strerror}") from error
            finally:
                os.close(pipe)
        finally:
            os.close(source)

    async def _by_messages(self, blob: Blob) -> None:
        with calling(self._source_place):
            reader = await self._source.reader(blob.digest)
        async with reader:
            with calling(self._target_place):
                writer = await self._target.writer(_ref(blob), total=blob.size, expected=blob.digest)
            async with writer:
                offset = writer.status.offset
                if offset > blob.size:
                    await writer.truncate(0)
                    offset = 0
                while offset < blob.size:
                    with calling(self._source_place):
                        data = await reader.read(offset, CHUNK)
                    if not data:
                        return  # the commit says that it is too short
                    with calling(self._target_place):
                        await writer.write(data)
                    offset += len(data)
                    self._moved(len(data))


def _splice(source: int, pipe: int, offset: int, size: int) -> None:
    """File to pipe in the kernel (splice(2)), as long as the other end takes it."""
    os.set_blocking(pipe, True)
    while offset < size:
        count = os.splice(source, pipe, min(CHUNK, size - offset), offset_src=offset)
        if not count:
            return
        offset += count


def _ref(blob: Blob) -> str:
    return f"{PREFIX}{blob.digest}"


class SnapshotCopy:
    """Committed snapshots from one snapshotter into another, each as the difference to its parent.

    The differ and the content store are the constellation's, in the namespace and under the lease of the call:
    a difference is a layer for as long as it is on its way.
    """

    def __init__(
        self,
        source: Snapshotter,
        source_place: Place,
        target: Snapshotter,
        target_place: Place,
        *,
        differ: Differ,
        content: ContentStore,
    ) -> None:
        self._source, self._source_place = source, source_place
        self._target, self._target_place = target, target_place
        self._differ = differ
        self._content = content

    async def copy(self, snapshot: Snapshot) -> int:
        """Bring one snapshot, whose parent is there. Returns the bytes of the difference.

        Raises:
            NotFound: the source has it no more, or the target has not its parent.
        """
        key = PREFIX + sha256(snapshot.name.encode()).hexdigest()[:32]
        layer = await self._difference(snapshot, key)
        try:
            with calling(self._target_place):
                with suppress(NotFound):  # of a copy that was cut
                    await self._target.remove(key)
                mounts = await self._target.prepare(key, snapshot.parent, _told(snapshot))
            await self._differ.apply(layer, mounts)
            with calling(self._target_place), suppress(AlreadyExists):
                await self._target.commit(snapshot.name, key, _told(snapshot))
        finally:
            with suppress(NotFound):
                await self._content.delete(Digest(layer.digest))
        return layer.size

    async def _difference(self, snapshot: Snapshot, key: str) -> Descriptor:
        keys = f"{key}-lower", f"{key}-upper"
        try:
            with calling(self._source_place):
                await self._drop(keys)
                lower = await self._source.view(keys[0], snapshot.parent)
                upper = await self._source.view(keys[1], snapshot.name)
            until = datetime.now(UTC) + KEPT
            labels = {GC_EXPIRE: until.strftime("%Y-%m-%dT%H:%M:%SZ")}
            return await self._differ.diff(lower, upper, media_type=LAYER, ref=key, labels=labels)
        finally:
            with calling(self._source_place):
                await self._drop(keys)

    async def _drop(self, keys: Sequence[str]) -> None:
        for key in keys:
            with suppress(NotFound):
                await self._source.remove(key)


def _told(snapshot: Snapshot) -> dict[str, str]:
    """A label that asks a remote snapshotter for a snapshot would have it answer instead of taking this one."""
    return {key: value for key, value in snapshot.labels.items() if key != SNAPSHOT_REF}
