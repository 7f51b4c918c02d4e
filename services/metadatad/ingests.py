"""Writers of the namespaced content store.

written      the back end has an ingest; its bytes become a blob with commit
shared       the back end has the expected blob already: nothing need be written, commit makes the record.
             Whoever writes after all, or truncates, gets an ingest of its own that begins with the blob's bytes.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Self

from carina import faults
from carina import labels as rules
from carina.aio.finish import finish
from carina.content import ContentStore, Status, Writer
from carina.context import Call, use
from carina.digest import Digest
from carina.errors import AlreadyExists, FailedPrecondition, OutOfRange
from carina.leases import Resource
from metadatad import blobs, leases
from metadatad.blobs import Ingest
from metadatad.claims import Claims
from metadatad.peers import Peer
from metadatad.records import Records, Transaction

COPY: Final = 1024 * 1024
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """What the namespaced store and its writers work with."""

    records: Records
    backend: ContentStore
    peer: Peer
    claims: Claims
    changed: Callable[[str, Digest], None]
    """Told of a blob whose record changed."""


class NamespacedWriter:
    """`carina.content.Writer` of one namespace's ingest."""

    def __init__(self, store: Store, *, call: Call, namespace: str, ingest: Ingest, size: int) -> None:
        self._store = store
        self._call = call
        self._namespace = namespace
        self._ingest = ingest
        self._size = size
        self._writer: Writer | None = None
        self._closed = False

    @property
    def status(self) -> Status:
        if self._writer is None:
            return Status(ref=self._ingest.ref, offset=self._size, total=self._size, expected=self._ingest.expected)
        return replace(self._writer.status, ref=self._ingest.ref, expected=self._ingest.expected)

    async def open(self) -> None:
        """Open the ingest at the back end, and lock it."""
        async with self._store.peer.opening():
            self._writer = await self._store.backend.writer(self._ingest.backend_ref, total=self._ingest.total)

    async def write(self, data: bytes) -> None:
        if not data:
            return
        writer = self._writer or await self._unshare(self._size)
        async with self._stalling():
            await writer.write(data)

    async def truncate(self, offset: int) -> None:
        if self._writer is None:
            if offset > self._size:
                raise OutOfRange(f"ingest {self._ingest.ref!r} holds {self._size} bytes, fewer than {offset}")
            await self._unshare(offset)
            return
        async with self._stalling():
            await self._writer.truncate(offset)

    async def digest(self) -> Digest:
        if self._writer is None:
            assert self._ingest.expected is not None
            return self._ingest.expected
        async with self._stalling():
            return await self._writer.digest()

    async def commit(self, *, size: int = 0, expected: Digest | None = None, labels: Labels | None = None) -> Digest:
        try:
            rules.validate(labels or {})
            with use(self._call):
                if self._writer is None:
                    return await self._commit_shared(size, expected, labels or {})
                return await self._commit_written(self._writer, size=size, expected=expected, labels=labels or {})
        finally:
            await self.close()

    async def close(self) -> None:
        if self._writer is not None and not self._closed:
            self._closed = True
            await self._writer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.close()

    async def _commit_shared(self, size: int, expected: Digest | None, labels: Labels) -> Digest:
        digest = self._ingest.expected
        assert digest is not None
        if size and size != self._size:
            raise FailedPrecondition(f"ingest {self._ingest.ref!r} is {self._size} bytes long, not {size}")
        if expected is not None and expected != digest:
            raise FailedPrecondition(f"ingest {self._ingest.ref!r} is {digest}, not {expected}")
        await finish(self._record(digest, self._size, labels, shared=True))
        return digest

    async def _commit_written(self, writer: Writer, *, size: int, expected: Digest | None, labels: Labels) -> Digest:
        digest = expected or await self.digest()
        if digest != self._ingest.expected:
            await self._store.records.write(
                lambda transaction: blobs.expect(transaction.connection, self._namespace, self._ingest.ref, digest)
            )
        offset = writer.status.offset
        async with self._store.claims.use(("content", digest)):
            faults.point("metadatad.content.expected")
            # The back end's answer and the record belong together: whoever gives up waiting gets both or neither.
            return await finish(self._commit_and_record(writer, digest, size=size, offset=offset, labels=labels))

    async def _commit_and_record(
        self, writer: Writer, digest: Digest, *, size: int, offset: int, labels: Labels
    ) -> Digest:
        with contextlib.suppress(AlreadyExists):  # in another namespace, or from before a crash
            async with self._store.peer.working():
                await writer.commit(size=size, expected=digest)
        faults.point("metadatad.content.committed")
        await self._record(digest, offset, labels)
        faults.point("metadatad.content.recorded")
        return digest

    async def _record(self, digest: Digest, size: int, labels: Labels, *, shared: bool = False) -> None:
        namespace, lease = self._namespace, self._call.lease

        def become(transaction: Transaction) -> bool:
            connection = transaction.connection
            if shared:
                blobs.must_be_shared(connection, namespace, self._ingest.ref, digest)
            blobs.finish_ingest(connection, namespace, self._ingest.ref)
            leases.hold(connection, namespace, lease, Resource(type="content", id=digest))
            return blobs.record(transaction, namespace, digest, size=size, labels=labels)

        made = await self._store.records.write(become)
        self._store.changed(namespace, digest)
        if not made:
            raise AlreadyExists(f"content {digest} already exists")

    async def _unshare(self, offset: int) -> Writer:
        """Begin an ingest with the first bytes of the blob.

        Its row says so before the back end has it: whatever becomes of us, the back end is told to let go of it.
        """
        digest = self._ingest.expected
        assert digest is not None
        async with self._store.claims.use(("content", digest)):
            await self._store.records.write(
                lambda transaction: blobs.expect(transaction.connection, self._namespace, self._ingest.ref, digest)
            )
            await self.open()
            writer = self._writer
            assert writer is not None
            try:
                if writer.status.offset:
                    await writer.truncate(0)
                await self._copy(digest, offset, writer)
            except BaseException:
                await self.close()
                raise
        return writer

    async def _copy(self, digest: Digest, size: int, writer: Writer) -> None:
        if not size:
            return
        async with self._store.peer.answering():
            reader = await self._store.backend.reader(digest)
        async with reader:
            at = 0
            while at < size:
                async with self._stalling():
                    data = await reader.read(at, min(COPY, size - at))
                    if not data:
                        break
                    await writer.write(data)
                at += len(data)

    @contextlib.asynccontextmanager
    async def _stalling(self) -> AsyncIterator[None]:
        async with self._store.peer.working():
            yield
