"""The namespaced view of content: who has which blob, over one store that knows no namespaces.

What clients ask most often is answered from memory: records and the bytes of small blobs, `ctr run` reads the same
manifests again and again. Bytes are kept by digest, and given only to a namespace that has a record of the digest.
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Final

from carina import context, faults
from carina.aio.finish import finish
from carina.content import ContentStore, DescriptorLane, Info, Reader, SizedReaders, Status
from carina.content.descriptors import OpenBlobs
from carina.content.fields import fields as info_fields
from carina.content.fields import status_fields
from carina.digest import Digest
from carina.errors import (
    AlreadyExists,
    CarinaError,
    DataLoss,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from carina.filters import matcher
from carina.lane import Token, TokenLane
from carina.leases import Resource
from carina.sqlite import now
from metadatad import blobs, leases, listing, rpc, tombstones
from metadatad.blobs import Ingest
from metadatad.cache import Bounded
from metadatad.claims import Claims
from metadatad.columns import validate_name
from metadatad.gate import Gate
from metadatad.ingests import NamespacedWriter, Store
from metadatad.peers import Peer
from metadatad.readers import BackendReader, MemoryReader
from metadatad.records import Records, Transaction
from metadatad.sharing import Sharing

SMALL: Final = 64 * 1024
"""Blobs up to this size are read whole and kept in memory."""
KEPT_BYTES: Final = 16 << 20
"""Memory for the bytes of small blobs."""
KEPT_INFOS: Final = 8 << 20
"""Memory for records."""
ENTRY: Final = 512
"""Bytes that a kept value takes beside its own: key, digest, times, the map's entry."""
PAGE: Final = 500
"""Blobs that a list holds in memory."""


class NamespacedContentStore:
    """`carina.content.ContentStore` of the call's namespace.

    With `shared`, knowing the digest of a blob that any namespace has is enough to get it; without, every namespace
    must bring the bytes itself (the back end stores them once all the same), as those must that are `isolated`.
    """

    def __init__(
        self,
        records: Records,
        backend: ContentStore,
        *,
        peer: Peer,
        claims: Claims,
        shared: bool = True,
        lane: TokenLane | None = None,
        gate: Gate | None = None,
        isolated: frozenset[str] = frozenset(),
    ) -> None:
        self._records = records
        self._backend = backend
        self._peer = peer
        self._claims = claims
        self._sharing = Sharing(shared=shared, isolated=isolated)
        self._lane = lane
        self._gate = gate or Gate("content")
        self._started = now()
        self._settled = False
        self._infos: Bounded[tuple[str, Digest], Info] = Bounded(KEPT_INFOS, weigh=_weight)
        self._bytes: Bounded[Digest, bytes] = Bounded(KEPT_BYTES, weigh=lambda data: ENTRY + len(data))
        self._readers = OpenBlobs(self._load)
        self._descriptors = True
        self._store = Store(records=records, backend=backend, peer=peer, claims=claims, changed=self.changed)

    def move(self, backend: ContentStore, peer: Peer, lane: TokenLane | None) -> None:
        """Go on with another back end, which has everything. Readers that are open go on with the one before."""
        self._backend, self._peer, self._lane = backend, peer, lane
        self._readers.close()
        self._descriptors = True
        self._store = replace(self._store, backend=backend, peer=peer)

    def changed(self, namespace: str, digest: Digest) -> None:
        """The record of a blob has changed or gone: forget what was kept of it."""
        self._infos.forget((namespace, digest))
        self._readers.drop(digest)

    def forget(self, digest: Digest) -> None:
        """The bytes of a blob were put aside: forget what was kept of them."""
        self._infos.clear()
        self._bytes.forget(digest)
        self._readers.drop(digest)

    def close(self) -> None:
        """Let go of the descriptors that are kept open."""
        self._readers.close()

    async def info(self, digest: Digest) -> Info:
        namespace = context.namespace()
        kept = self._infos.get((namespace, digest))
        if kept is not None:
            return kept
        generation = self._infos.generation
        info = await self._records.read(lambda connection: blobs.get(connection, namespace, digest))
        self._infos.put((namespace, digest), info, generation=generation)
        return info

    async def update(self, info: Info, fields: Sequence[str] = ()) -> Info:
        namespace = context.namespace()
        for field in fields:
            if field != "labels" and not field.startswith("labels."):
                raise InvalidArgument(f"field {field!r} of content {info.digest} can't be updated")

        async def change() -> Info:
            try:
                return await self._records.write(
                    lambda transaction: blobs.relabel(
                        transaction, namespace, info.digest, info, list(fields) or ["labels"]
                    )
                )
            finally:
                self.changed(namespace, info.digest)

        return await finish(change())

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        namespace = context.namespace()
        matches = matcher(filters, info_fields)
        after = ""
        while True:
            start = after
            page = await self._records.read(lambda connection: blobs.page(connection, namespace, start, PAGE))  # noqa: B023
            for info in page:
                if matches(info):
                    yield info
            if len(page) < PAGE:
                return
            after = page[-1].digest

    async def listing(self) -> AsyncIterator[bytes]:
        """See `carina.content.server.Listing`."""
        namespace, after, more = context.namespace(), "", True
        while more:
            start = after
            messages, after = await self._records.read(
                lambda connection: listing.content(connection, namespace, start, PAGE)  # noqa: B023
            )
            for message in messages:
                yield message
            more = after != ""

    async def delete(self, digest: Digest) -> None:
        call, namespace = context.current(), context.namespace()

        def remove(transaction: Transaction) -> None:
            connection = transaction.connection
            info = blobs.get(connection, namespace, digest)
            blobs.discard(connection, namespace, digest, info.size)
            with contextlib.suppress(NotFound):  # the lease has gone meanwhile
                leases.release(connection, namespace, call.lease, Resource(type="content", id=digest))
            transaction.emit(namespace, "/content/delete", rpc.content_delete(digest))
            transaction.deletion = True

        async def change() -> None:
            try:
                await self._records.write(remove)
            finally:
                self.changed(namespace, digest)

        await finish(change())

    async def reader(self, digest: Digest) -> Reader:
        info = await self.info(digest)
        if info.size > SMALL:
            async with self._gate.passing():
                return await self._large(digest)
        kept = self._bytes.get(digest)
        if kept is None:
            async with self._gate.passing():
                kept = await self._read_small(info)
        return MemoryReader(kept)

    async def _large(self, digest: Digest) -> Reader:
        """By descriptor where the back end has a lane: Go clients read a blob with one call per 32 KiB."""
        if self._descriptors:
            try:
                return await self._readers.open(digest)
            except Unimplemented:
                self._descriptors = False
        async with self._peer.answering():
            return BackendReader(await self._backend.reader(digest), self._peer)

    async def _load(self, digest: Digest) -> tuple[int, int]:
        if not isinstance(self._backend, DescriptorLane):
            raise Unimplemented(f"{self._peer.name} has no descriptor lane")
        async with self._peer.answering():
            return await self._backend.open_blob(digest)

    async def _read_small(self, info: Info) -> bytes:
        generation = self._bytes.generation
        async with self._peer.answering():
            async with await self._reader_of(info) as reader:
                data = await reader.read(0, info.size) if info.size else b""
        if Digest.of(data, info.digest.algorithm) != info.digest:
            raise DataLoss(f"content {info.digest} is damaged: `carina check --repair` puts it aside for a new pull")
        self._bytes.put(info.digest, data, generation=generation)
        return data

    async def _reader_of(self, info: Info) -> Reader:
        if isinstance(self._backend, SizedReaders):
            return self._backend.sized_reader(info.digest, info.size)
        return await self._backend.reader(info.digest)

    async def status(self, ref: str) -> Status:
        namespace = context.namespace()
        ingest = await self._records.read(lambda connection: blobs.get_ingest(connection, namespace, ref))
        try:
            async with self._peer.answering():
                status = await self._backend.status(ingest.backend_ref)
                return replace(status, ref=ref, expected=ingest.expected)
        except NotFound as error:
            raise NotFound(f"ingest {ref!r} does not exist") from error

    async def statuses(self, filters: Sequence[str] = ()) -> list[Status]:
        namespace = context.namespace()
        matches = matcher(filters, status_fields)
        rows = await self._records.read(
            lambda connection: connection.execute(
                "SELECT backend_ref, ref, expected FROM ingests WHERE namespace = ? ORDER BY ref", (namespace,)
            ).fetchall()
        )
        if not rows:
            return []
        async with self._peer.answering():
            found = {status.ref: status for status in await self._backend.statuses()}
        mine = [
            replace(found[backend_ref], ref=ref, expected=Digest(expected) if expected else None)
            for backend_ref, ref, expected in rows
            if backend_ref in found
        ]
        return [status for status in mine if matches(status)]

    async def writer(self, ref: str, *, total: int = 0, expected: Digest | None = None) -> NamespacedWriter:
        call = context.current()
        async with self._gate.passing():
            ingest, size = await self._open(ref, total=total, expected=expected)
            faults.point("metadatad.content.opened")
            writer = NamespacedWriter(self._store, call=call, namespace=context.namespace(), ingest=ingest, size=size)
            if not ingest.shared:
                async with self._undoing(ingest):
                    await writer.open()
        return writer

    async def abort(self, ref: str) -> None:
        namespace = context.namespace()

        def remove(transaction: Transaction) -> Ingest:
            connection = transaction.connection
            ingest = blobs.get_ingest(connection, namespace, ref)
            blobs.discard_ingest(connection, namespace, ref)
            transaction.deletion = True
            return ingest

        ingest = await self._records.write(remove)
        try:
            async with self._peer.answering():
                await self._backend.abort(ingest.backend_ref)
        except CarinaError:
            return  # gone there too, or the collector tries again: the tombstone says so
        await self._records.write(
            lambda transaction: tombstones.exhume(transaction.connection, "ingest", "", ingest.backend_ref)
        )

    async def blob_token(self, digest: Digest) -> Token:
        """A token of the back end's for a descriptor of the blob. Raises Unimplemented where it has no lane."""
        info = await self.info(digest)
        async with self._gate.passing():
            lane = self._need_lane()
            async with self._peer.answering():
                return await lane.blob_token(info.digest)

    async def ingest_token(
        self, ref: str, *, total: int = 0, expected: Digest | None = None, offset: int | None = None
    ) -> Token:
        """A token of the back end's for the write end of a pipe into the ingest.

        Raises:
            AlreadyExists: the namespace has the expected blob, or has it now, where it may share that of another.
        """
        async with self._gate.passing():
            lane = self._need_lane()
            ingest, size = await self._open(ref, total=total, expected=expected)
            if not ingest.shared:
                async with self._undoing(ingest), self._peer.answering():
                    return await lane.ingest_token(ingest.backend_ref, total=total, offset=offset)
        call = context.current()
        writer = NamespacedWriter(self._store, call=call, namespace=context.namespace(), ingest=ingest, size=size)
        await writer.commit()
        raise AlreadyExists(f"content {expected} already exists")

    @contextlib.asynccontextmanager
    async def _undoing(self, ingest: Ingest) -> AsyncIterator[None]:
        """Where the back end has no room to begin an ingest, no row of it stays."""
        try:
            yield
        except ResourceExhausted:
            namespace = context.namespace()

            def discard(transaction: Transaction) -> None:
                found = blobs.find_ingest(transaction.connection, namespace, ingest.ref)
                if found is not None and found.backend_ref == ingest.backend_ref:
                    blobs.discard_ingest(transaction.connection, namespace, ingest.ref)
                    transaction.deletion = True

            async with self._claims.use(("ingest", ingest.backend_ref)):
                try:
                    async with self._peer.answering():
                        await self._backend.status(ingest.backend_ref)
                except NotFound:  # what was written before can be gone on with
                    await self._records.write(discard)
            raise

    async def settle(self) -> None:
        """Remove, once in a process, the rows of earlier ingests that the back end no longer has.

        Such an ingest may have become a blob just before a crash: that goes too, unless it is recorded.
        """
        if self._settled:
            return
        rows = await self._records.read(lambda connection: blobs.ingests_before(connection, self._started))
        if rows:
            async with self._peer.answering():
                there = {status.ref for status in await self._backend.statuses()}
            gone = [row for row in rows if row.backend_ref not in there]

            def discard(transaction: Transaction) -> None:
                transaction.deletion = blobs.discard_ingests(transaction.connection, gone, self._started)

            await self._records.write(discard)
        self._settled = True

    def _need_lane(self) -> TokenLane:
        if self._lane is None:
            raise Unimplemented("the content back end has no descriptor lane")
        return self._lane

    async def _open(self, ref: str, *, total: int, expected: Digest | None) -> tuple[Ingest, int]:
        """Write the row of an ingest, and say how many bytes the shared blob has."""
        call, namespace = context.current(), context.namespace()
        validate_name(ref, "ref")
        if expected is None:
            return await self._insert(Ingest(ref=ref, backend_ref="", total=total), call.lease), 0
        await self._must_be_new(namespace, expected, call.lease)
        async with self._claims.use(("content", expected)):
            size = await self._sharable_size(expected, total)
            ingest = Ingest(ref=ref, backend_ref="", expected=expected, total=total, shared=size is not None)
            return await self._insert(ingest, call.lease), size or 0

    async def _insert(self, ingest: Ingest, lease: str | None) -> Ingest:
        namespace = context.namespace()

        def write(transaction: Transaction) -> Ingest:
            old = blobs.find_ingest(transaction.connection, namespace, ingest.ref)
            made = blobs.open_ingest(transaction.connection, namespace, ingest, lease)
            transaction.deletion = old is not None and old.backend_ref != made.backend_ref
            return made

        return await self._records.write(write)

    async def _must_be_new(self, namespace: str, digest: Digest, lease: str | None) -> None:
        """Raises AlreadyExists where the namespace has the blob, which the call's lease holds from now on.

        A blob that is recorded, and that the back end has lost, may be written again; its record stays.
        """
        if await self._records.read(lambda connection: blobs.find(connection, namespace, digest)) is None:
            return
        if await self._is_lost(digest):
            return

        def hold(transaction: Transaction) -> bool:
            found = blobs.find(transaction.connection, namespace, digest) is not None
            if found:
                leases.hold(transaction.connection, namespace, lease, Resource(type="content", id=digest))
            return found

        if not lease or await self._records.write(hold):
            raise AlreadyExists(f"content {digest} already exists")

    async def _is_lost(self, digest: Digest) -> bool:
        try:
            async with self._peer.answering():
                await self._backend.info(digest)
        except NotFound:
            return True
        except (Unavailable, DeadlineExceeded):  # nobody can tell now
            pass
        return False

    async def _sharable_size(self, digest: Digest, total: int) -> int | None:
        """The size of a blob that the back end has and this namespace may share; None without."""
        if not await self._sharing.allows(self._records, digest):
            return None
        try:
            async with self._peer.answering():
                info = await self._backend.info(digest)
        except NotFound:
            return None
        return info.size if total in (0, info.size) else None


def _weight(info: Info) -> int:
    """About the bytes that a record takes; labels may be millions."""
    return ENTRY + sum(len(key) + len(value) + 128 for key, value in info.labels.items())
