"""Content stores over a socket: ours, containerd's, and any proxy plugin."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NoReturn, Self

from grpclib.const import Cardinality

from carina import context
from carina.api.carina.content.v1 import LaneStub, OpenBlobRequest, OpenIngestRequest
from carina.api.containerd.services.content.v1 import (
    AbortRequest,
    ContentStub,
    DeleteContentRequest,
    InfoRequest,
    ListContentRequest,
    ListStatusesRequest,
    ReadContentRequest,
    StatusRequest,
    UpdateRequest,
    WriteAction,
    WriteContentRequest,
    WriteContentResponse,
)
from carina.api.containerd.services.content.v1 import Info as WireInfo
from carina.api.containerd.services.content.v1 import Status as WireStatus
from carina.api.google.protobuf import FieldMask
from carina.content import Info, Status
from carina.digest import Digest
from carina.errors import DeadlineExceeded, FailedPrecondition, Internal, OutOfRange, Unimplemented
from carina.rpc.client import Channel
from carina.rpc.lane import redeem

WRITE: Final = "/containerd.services.content.v1.Content/Write"
CHUNK: Final = 1 << 20
"""Bytes of one message."""
WINDOW: Final = 4
"""Messages of one `write` that may be unanswered."""
CALL_SECONDS: Final = 60.0
"""For a call that looks something up."""
CHANGE_SECONDS: Final = 180.0
"""For a call that may have to wait for another one, and for the disk."""
STALL_SECONDS: Final = 60.0
"""How long a message of a stream may stay unanswered."""
COMMIT_SECONDS: Final = 600.0
"""For a commit, which may hash and flush all of a blob."""
SLOWEST: Final = 1_000_000
"""Bytes per second that a read brings at the least."""


def info_to_wire(info: Info) -> WireInfo:
    return WireInfo(
        digest=info.digest,
        size=info.size,
        created_at=info.created_at,
        updated_at=info.updated_at,
        labels=dict(info.labels),
    )


def info_from_wire(wire: WireInfo | None) -> Info:
    """Raises Internal: the peer sent no blob; InvalidArgument: one without a valid digest."""
    if wire is None:
        raise Internal("the content store answered without a blob")
    return Info(
        digest=Digest(wire.digest),
        size=wire.size,
        created_at=wire.created_at,
        updated_at=wire.updated_at,
        labels=dict(wire.labels),
    )


def status_to_wire(status: Status) -> WireStatus:
    return WireStatus(
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected or "",
        started_at=status.started_at,
        updated_at=status.updated_at,
    )


def status_from_wire(wire: WireStatus | None) -> Status:
    """Raises Internal: the peer sent none."""
    if wire is None:
        raise Internal("the content store answered without a status")
    return Status(
        ref=wire.ref,
        offset=wire.offset,
        total=wire.total,
        expected=Digest(wire.expected) if wire.expected else None,
        started_at=wire.started_at,
        updated_at=wire.updated_at,
    )


class RemoteContentStore:
    """`carina.content.ContentStore`, `DescriptorLane` and `SizedReaders` over `channel`, which stays the caller's.

    A peer without descriptor lane answers Unimplemented to `open_blob` and `open_ingest`.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._stub = ContentStub(channel)
        self._lane = LaneStub(channel)

    async def info(self, digest: Digest) -> Info:
        answer = await self._stub.info(InfoRequest(digest=digest), timeout=CALL_SECONDS)
        return info_from_wire(answer.info)

    async def update(self, info: Info, fields: Sequence[str] = ()) -> Info:
        mask = FieldMask(paths=list(fields)) if fields else None
        request = UpdateRequest(info=info_to_wire(info), update_mask=mask)
        return info_from_wire((await self._stub.update(request, timeout=CHANGE_SECONDS)).info)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        async for answer in self._stub.list(ListContentRequest(filters=list(filters))):
            for wire in answer.info:
                yield info_from_wire(wire)

    async def delete(self, digest: Digest) -> None:
        await self._stub.delete(DeleteContentRequest(digest=digest), timeout=CHANGE_SECONDS)

    async def reader(self, digest: Digest) -> "RemoteReader":
        info = await self.info(digest)
        return RemoteReader(self._stub, digest, info.size)

    def sized_reader(self, digest: Digest, size: int) -> "RemoteReader":
        return RemoteReader(self._stub, digest, size)

    async def status(self, ref: str) -> Status:
        answer = await self._stub.status(StatusRequest(ref=ref), timeout=CALL_SECONDS)
        return status_from_wire(answer.status)

    async def statuses(self, filters: Sequence[str] = ()) -> list[Status]:
        answer = await self._stub.list_statuses(ListStatusesRequest(filters=list(filters)), timeout=CALL_SECONDS)
        return [status_from_wire(wire) for wire in answer.statuses]

    async def writer(self, ref: str, *, total: int = 0, expected: Digest | None = None) -> "RemoteWriter":
        conversation = _Conversation(self._channel)
        await conversation.open()
        request = WriteContentRequest(action=WriteAction.STAT, ref=ref, total=total, expected=expected or "")
        await conversation.send(request)
        answer = await conversation.receive(CHANGE_SECONDS)
        status = Status(
            ref=ref,
            offset=answer.offset,
            total=answer.total or total,
            expected=expected,
            started_at=answer.started_at,
            updated_at=answer.updated_at,
        )
        return RemoteWriter(conversation, status, answer.digest)

    async def abort(self, ref: str) -> None:
        await self._stub.abort(AbortRequest(ref=ref), timeout=CHANGE_SECONDS)

    async def open_blob(self, digest: Digest) -> tuple[int, int]:
        answer = await self._lane.open_blob(OpenBlobRequest(digest=digest), timeout=CALL_SECONDS)
        return await redeem(answer.address, answer.token), answer.size

    async def open_ingest(
        self, ref: str, *, total: int = 0, expected: Digest | None = None, offset: int | None = None
    ) -> tuple[int, int]:
        request = OpenIngestRequest(ref=ref, total=total, expected=expected or "", offset=offset)
        answer = await self._lane.open_ingest(request, timeout=CHANGE_SECONDS)
        return await redeem(answer.address, answer.token), answer.offset


class RemoteReader:
    """Every read is a call; the peer keeps nothing open for it, so that a blob deleted meanwhile is NotFound."""

    def __init__(self, stub: ContentStub, digest: Digest, size: int) -> None:
        self._stub = stub
        self._digest = digest
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    async def read(self, offset: int, length: int) -> bytes:
        if offset < 0:
            raise OutOfRange(f"content {self._digest}: offset {offset} is negative")
        length = min(length, self._size - offset)
        if length <= 0:
            return b""
        request = ReadContentRequest(digest=self._digest, offset=offset, size=length)
        seconds = STALL_SECONDS + length / SLOWEST
        pieces = [answer.data async for answer in self._stub.read(request, timeout=seconds)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def close(self) -> None:
        return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        return


class _Conversation:
    """One Write stream. Any failure ends it and is raised as the domain error that it stands for."""

    def __init__(self, channel: Channel) -> None:
        with context.no_deadline():  # the stream lasts as long as its work; every answer has a limit of its own
            self._stream = channel.request(WRITE, Cardinality.STREAM_STREAM, WriteContentRequest, WriteContentResponse)
        self.ended = False

    async def open(self) -> None:
        await self._stream.__aenter__()

    async def send(self, request: WriteContentRequest, *, end: bool = False) -> None:
        try:
            async with asyncio.timeout(_limit(STALL_SECONDS)):
                await self._stream.send_message(request, end=end)
        except BaseException as error:
            await self._fail(error)

    async def receive(self, seconds: float) -> WriteContentResponse:
        try:
            async with asyncio.timeout(_limit(seconds)):
                answer = await self._stream.recv_message()
                if answer is None:
                    await self._stream.recv_trailing_metadata()
                    raise Internal("the content store ended the stream without an answer")
        except BaseException as error:
            await self._fail(error)
        assert isinstance(answer, WriteContentResponse)
        return answer

    async def _fail(self, error: BaseException) -> NoReturn:
        self.ended = True
        if isinstance(error, TimeoutError):
            error = DeadlineExceeded("the content store did not answer in the time given")
        await self._stream.__aexit__(type(error), error, error.__traceback__)
        raise error

    async def close(self) -> None:
        """End the stream in order, so that the peer has let go of the ref when this returns."""
        if self.ended:
            return
        self.ended = True
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await self._stream.end()
                while await self._stream.recv_message() is not None:
                    pass
        except BaseException as error:
            await self._stream.__aexit__(type(error), error, error.__traceback__)
            raise
        await self._stream.__aexit__(None, None, None)

    async def finish(self) -> None:
        """The peer has ended the stream, or is about to."""
        self.ended = True
        await self._stream.__aexit__(None, None, None)


def _limit(seconds: float) -> float:
    remaining = context.current().remaining
    return seconds if remaining is None else min(seconds, remaining)


class RemoteWriter:
    """The `Writer` of an ingest behind a Write stream. A failure closes it; the ingest can be opened again."""

    def __init__(self, conversation: _Conversation, status: Status, digest: str) -> None:
        self._conversation = conversation
        self._status = status
        self._digest = digest
        self._turn = asyncio.Lock()

    @property
    def status(self) -> Status:
        return self._status

    async def write(self, data: bytes) -> None:
        if not data:
            return
        async with self._turn:
            self._require_open()
            unanswered: deque[int] = deque()
            for request in self._requests(data):
                await self._conversation.send(request)
                unanswered.append(request.offset + len(request.data))
                if len(unanswered) == WINDOW:
                    await self._answered(unanswered.popleft())
            while unanswered:
                await self._answered(unanswered.popleft())

    def _requests(self, data: bytes) -> Iterator[WriteContentRequest]:
        offset = self._status.offset
        view = memoryview(data)
        for start in range(0, len(data), CHUNK):
            piece = data if len(data) <= CHUNK else bytes(view[start : start + CHUNK])
            yield WriteContentRequest(action=WriteAction.WRITE, offset=offset + start, data=piece)

    async def _answered(self, offset: int) -> None:
        answer = await self._conversation.receive(STALL_SECONDS)
        self._status = replace(self._status, offset=answer.offset, updated_at=answer.updated_at)
        self._digest = answer.digest
        if answer.offset != offset:
            raise Internal(f"ref {self._status.ref!r}: the content store is at {answer.offset} instead of {offset}")

    async def truncate(self, offset: int) -> None:
        """The wire can only say: forget everything. Raises Unimplemented for any other offset before the end."""
        async with self._turn:
            self._require_open()
            ref, size = self._status.ref, self._status.offset
            if offset < 0 or offset > size:
                raise OutOfRange(f"ref {ref!r} has {size} bytes: it can't be cut at {offset}")
            if offset == size:
                return
            if offset:
                raise Unimplemented(f"ref {ref!r}: Content.Write can't cut at {offset}, only at 0")
            await self._conversation.send(WriteContentRequest(action=WriteAction.WRITE, offset=0))
            await self._answered(0)

    async def commit(
        self, *, size: int = 0, expected: Digest | None = None, labels: Mapping[str, str] | None = None
    ) -> Digest:
        async with self._turn:
            self._require_open()
            request = WriteContentRequest(
                action=WriteAction.COMMIT,
                total=size,
                expected=expected or "",
                offset=self._status.offset,
                labels=dict(labels or {}),
            )
            await self._conversation.send(request, end=True)
            answer = await self._conversation.receive(COMMIT_SECONDS)
            await self._conversation.finish()
            self._digest = answer.digest
            return Digest(answer.digest)

    async def digest(self) -> Digest:
        async with self._turn:
            if not self._digest:
                self._require_open()
                await self._conversation.send(WriteContentRequest(action=WriteAction.STAT))
                self._digest = (await self._conversation.receive(COMMIT_SECONDS)).digest
            return Digest(self._digest)

    async def close(self) -> None:
        async with self._turn:
            await self._conversation.close()

    def _require_open(self) -> None:
        if self._conversation.ended:
            raise FailedPrecondition(f"ref {self._status.ref!r}: its writer is closed")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: Any) -> None:
        await self.close()
