"""Serves any content store over gRPC, as containerd serves its own.

Streams are handled as streams, not through generators:
a cancelled call lets go of its writer or reader before it is over, not when a generator is collected.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Final, Protocol, runtime_checkable

from grpclib.const import Handler
from grpclib.server import Stream

from carina.api.carina.content.v1 import (
    LaneBase,
    OpenBlobRequest,
    OpenBlobResponse,
    OpenIngestRequest,
    OpenIngestResponse,
)
from carina.api.containerd.services.content.v1 import (
    AbortRequest,
    ContentBase,
    DeleteContentRequest,
    InfoRequest,
    InfoResponse,
    ListContentRequest,
    ListContentResponse,
    ListStatusesRequest,
    ListStatusesResponse,
    ReadContentRequest,
    ReadContentResponse,
    StatusRequest,
    StatusResponse,
    UpdateRequest,
    UpdateResponse,
    WriteAction,
    WriteContentRequest,
    WriteContentResponse,
)
from carina.api.google.protobuf import Empty
from carina.content import ContentStore, DescriptorLane, Writer
from carina.content.client import info_from_wire, info_to_wire, status_to_wire
from carina.digest import Digest
from carina.errors import AlreadyExists, CarinaError, DataLoss, InvalidArgument, NotFound, OutOfRange
from carina.rpc.codec import Encoded
from carina.rpc.lane import LaneServer

BLOCK: Final = 100
"""Blobs in one message of a list."""
CHUNK: Final = 1 << 20
"""Bytes in one message of a read."""
_PREFIX: Final = "/containerd.services.content.v1.Content/"


@runtime_checkable
class Listing(Protocol):
    """What a store with very many blobs offers besides."""

    def listing(self) -> AsyncIterator[bytes]:
        """Every blob, in encoded messages of ListContentResponse."""


class ContentService(ContentBase):
    """containerd's Content service on any `ContentStore`."""

    def __init__(self, store: ContentStore) -> None:
        self._store = store

    def __mapping__(self) -> dict[str, Handler]:
        mapping = super().__mapping__()
        streams: dict[str, Callable[[Any], Any]] = {"Read": self._read, "List": self._list, "Write": self._write}
        for name, handle in streams.items():
            mapping[_PREFIX + name] = mapping[_PREFIX + name]._replace(func=handle)
        return mapping

    async def info(self, message: InfoRequest) -> InfoResponse:
        return InfoResponse(info=info_to_wire(await self._store.info(Digest(message.digest))))

    async def update(self, message: UpdateRequest) -> UpdateResponse:
        if message.info is None:
            raise InvalidArgument("the update names no content")
        fields = message.update_mask.paths if message.update_mask else []
        return UpdateResponse(info=info_to_wire(await self._store.update(info_from_wire(message.info), fields)))

    async def delete(self, message: DeleteContentRequest) -> Empty:
        await self._store.delete(Digest(message.digest))
        return Empty()

    async def status(self, message: StatusRequest) -> StatusResponse:
        return StatusResponse(status=status_to_wire(await self._store.status(message.ref)))

    async def list_statuses(self, message: ListStatusesRequest) -> ListStatusesResponse:
        statuses = await self._store.statuses(message.filters)
        return ListStatusesResponse(statuses=[status_to_wire(status) for status in statuses])

    async def abort(self, message: AbortRequest) -> Empty:
        await self._store.abort(message.ref)
        return Empty()

    async def _list(self, stream: Stream[ListContentRequest, ListContentResponse | Encoded]) -> None:
        request = await stream.recv_message()
        assert request is not None
        if not request.filters and isinstance(self._store, Listing):
            async for data in self._store.listing():
                await stream.send_message(Encoded(data))
            return
        blobs = self._store.walk(request.filters)
        try:
            block = []
            async for info in blobs:
                block.append(info_to_wire(info))
                if len(block) == BLOCK:
                    await stream.send_message(ListContentResponse(info=block))
                    block = []
            if block:
                await stream.send_message(ListContentResponse(info=block))
        finally:
            if isinstance(blobs, AsyncGenerator):
                await blobs.aclose()

    async def _read(self, stream: Stream[ReadContentRequest, ReadContentResponse]) -> None:
        request = await stream.recv_message()
        assert request is not None
        digest = Digest(request.digest)
        async with await self._store.reader(digest) as reader:
            offset, end = max(0, request.offset), reader.size
            if offset > end:
                raise OutOfRange(f"content {digest} has {end} bytes: there is nothing at {offset}")
            if request.size > 0:
                end = min(end, offset + request.size)
            while offset < end:
                data = await reader.read(offset, min(CHUNK, end - offset))
                if not data:
                    raise DataLoss(f"content {digest} ends at {offset}, not at {reader.size}")
                await stream.send_message(ReadContentResponse(offset=offset, data=data))
                offset += len(data)

    async def _write(self, stream: Stream[WriteContentRequest, WriteContentResponse]) -> None:
        request = await stream.recv_message()
        if request is None or not request.ref:
            raise InvalidArgument("the first message of a write must name a ref")
        expected = _digest(request.expected)
        writer = await self._store.writer(request.ref, total=request.total, expected=expected)
        async with writer:
            session = _Session(self._store, writer, request)
            await stream.send_message(await session.answer(request, first=True))
            while request.action is not WriteAction.COMMIT:
                request = await stream.recv_message()
                if request is None:
                    return
                await stream.send_message(await session.answer(request, first=False))


class _Session:
    """One Write stream: what was announced, and how each request is carried out."""

    def __init__(self, store: ContentStore, writer: Writer, request: WriteContentRequest) -> None:
        self._store = store
        self._writer = writer
        self._ref = request.ref
        self._total = 0
        self._expected: Digest | None = None

    async def answer(self, request: WriteContentRequest, *, first: bool) -> WriteContentResponse:
        if request.expected:
            self._expected = Digest(request.expected)
            # The store itself looks when it opens a writer and when it commits.
            if not first and request.action is not WriteAction.COMMIT:
                await self._end_if_there(self._expected)
        self._total = request.total if request.total > 0 else self._total
        if request.action is not WriteAction.STAT:
            await self._write(request)
        if request.action is WriteAction.COMMIT:
            offset = self._writer.status.offset
            digest = await self._writer.commit(size=self._total, expected=self._expected, labels=request.labels)
        else:
            digest, offset = await self._writer.digest(), self._writer.status.offset
        status = self._writer.status
        return WriteContentResponse(
            action=request.action,
            started_at=status.started_at,
            updated_at=status.updated_at,
            offset=offset,
            total=self._total or status.total,
            digest=digest,
        )

    async def _write(self, request: WriteContentRequest) -> None:
        offset = self._writer.status.offset
        if request.offset < 0 or (request.offset > 0 and request.offset != offset):
            raise OutOfRange(f"ref {self._ref!r}: a write at {request.offset} must be at the current offset {offset}")
        if request.offset == 0 and offset > 0:
            await self._writer.truncate(0)
        if request.data:
            await self._writer.write(request.data)

    async def _end_if_there(self, digest: Digest) -> None:
        try:
            await self._store.info(digest)
        except NotFound:
            return
        await self._writer.close()
        try:
            await self._store.abort(self._ref)
        except CarinaError:  # somebody else has it by now, or it is gone
            pass
        raise AlreadyExists(f"content {digest}: already exists")


class LaneService(LaneBase):
    """Hands out the descriptors of `lane` through `server`, in this process."""

    def __init__(self, lane: DescriptorLane, server: LaneServer) -> None:
        self._lane = lane
        self._server = server

    async def open_blob(self, message: OpenBlobRequest) -> OpenBlobResponse:
        descriptor, size = await self._lane.open_blob(Digest(message.digest))
        return OpenBlobResponse(address=str(self._server.path), token=self._server.offer(descriptor), size=size)

    async def open_ingest(self, message: OpenIngestRequest) -> OpenIngestResponse:
        descriptor, offset = await self._lane.open_ingest(
            message.ref, total=message.total, expected=_digest(message.expected), offset=message.offset
        )
        return OpenIngestResponse(address=str(self._server.path), token=self._server.offer(descriptor), offset=offset)


def _digest(text: str) -> Digest | None:
    return Digest(text) if text else None
