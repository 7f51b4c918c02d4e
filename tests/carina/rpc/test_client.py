"""The channel: context along with each call, the domain's errors back, and connections that come and go."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpclib.client
import grpclib.server
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from carina import context, errors
from carina.api.containerd.services.content.v1 import (
    ContentBase,
    ContentStub,
    Info,
    InfoRequest,
    InfoResponse,
    ReadContentRequest,
    ReadContentResponse,
    WriteContentRequest,
    WriteContentResponse,
)
from carina.rpc import codes
from carina.rpc.client import Channel, connect
from carina.rpc.codec import Codec
from carina.rpc.metadata import timeout
from carina.rpc.server import serve

CLASSES = sorted(codes.STATUS_OF, key=lambda kind: kind.__name__)


class Content(ContentBase):
    def __init__(self) -> None:
        self.call = context.Call()
        self.cancelled = asyncio.Event()

    async def info(self, message: InfoRequest) -> InfoResponse:
        self.call = context.current()
        if message.digest == "wait":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        for kind in CLASSES:
            if message.digest == kind.__name__:
                raise kind(f"{kind.__name__} it is")
        return InfoResponse(info=Info(digest=message.digest))

    async def read(self, message: ReadContentRequest) -> AsyncIterator[ReadContentResponse]:
        for at in range(message.size):
            yield ReadContentResponse(offset=at, data=bytes(1 << 20))
        if message.digest == "fail":
            raise errors.DataLoss("content fail: damaged")
        if message.digest == "wait":
            await asyncio.sleep(60)

    async def write(self, messages: AsyncIterator[WriteContentRequest]) -> AsyncIterator[WriteContentResponse]:
        total = 0
        async for message in messages:
            if message.ref == "refuse":
                raise errors.AlreadyExists("content refuse: already exists")
            total += len(message.data)
            yield WriteContentResponse(total=total)


@contextlib.asynccontextmanager
async def _served(directory: Path, **options: Any) -> AsyncIterator[tuple[ContentStub, Content, Channel]]:
    address, content = f"unix://{directory}/s.sock", Content()
    async with serve(address, [content], name="tested", grace=0.1, **options):
        channel = connect(address)
        try:
            yield ContentStub(channel), content, channel
        finally:
            channel.close()


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
async def test_every_error_crosses_the_wire_as_itself(tmp_path: Path, kind: type[errors.CarinaError]) -> None:
    """The class and text that a service raises are what its client catches."""
    async with _served(tmp_path) as (stub, _, _):
        with pytest.raises(errors.CarinaError) as caught:
            await stub.info(InfoRequest(digest=kind.__name__))

    assert (type(caught.value), str(caught.value)) == (kind, f"{kind.__name__} it is")


def test_the_table_of_codes_is_complete_and_goes_both_ways() -> None:
    """Every status but OK has one class and every class one status."""
    assert set(codes.CLASS_OF) == set(Status) - {Status.OK}
    for status in codes.CLASS_OF:
        assert codes.to_wire(codes.to_domain(GRPCError(status, "text"))).status is status


def test_a_subclass_has_the_status_of_its_class() -> None:
    """A more special error of a service counts as what it derives from."""

    class Special(errors.NotFound):
        pass

    assert codes.status_of(Special("x")) is Status.NOT_FOUND


async def test_the_context_travels_along(tmp_path: Path) -> None:
    """Namespace, lease, trace and deadline of the caller are the callee's."""
    async with _served(tmp_path) as (stub, content, _):
        call = context.Call(namespace="n", lease="l", trace="t", deadline=time.monotonic() + 20)
        with context.use(call):
            await stub.info(InfoRequest(digest="a"))
        received = content.call
        await stub.info(InfoRequest(digest="a"))

    assert (received.namespace, received.lease, received.trace) == ("n", "l", "t")
    assert received.remaining is not None
    assert 18 < received.remaining < 22
    later = content.call
    assert (later.namespace, later.lease, later.trace, later.deadline) == (None, None, None, None)


async def test_a_namespace_that_no_header_can_carry(tmp_path: Path) -> None:
    """Line breaks in a namespace are refused before anything is sent."""
    async with _served(tmp_path) as (stub, _, _):
        with context.within(namespace="a\r\nb"), pytest.raises(errors.InvalidArgument, match="printable"):
            await stub.info(InfoRequest(digest="a"))


@pytest.mark.parametrize("seconds", [0.0004, 0.02, 0.5, 1.0, 9.99, 63, 65, 86400.0])
def test_deadlines_are_rounded_up_a_little(seconds: float) -> None:
    """What is sent is never less than what was given, and at most about a tenth more."""
    text = timeout(seconds)
    sent = float(text[:-1]) * {"m": 1e-3, "S": 1.0}[text[-1]]

    assert seconds <= sent <= seconds * 1.1 + 0.002
    assert len(text) <= 9


async def test_a_deadline_ends_a_call(tmp_path: Path) -> None:
    """After the time of the context the caller has DeadlineExceeded, and the handler is cancelled."""
    async with _served(tmp_path) as (stub, content, _):
        start = time.monotonic()
        with context.deadline(0.1), pytest.raises(errors.DeadlineExceeded, match="Content/Info"):
            await stub.info(InfoRequest(digest="wait"))
        assert time.monotonic() - start < 30
        async with asyncio.timeout(30):
            await content.cancelled.wait()
        with context.deadline(0), pytest.raises(errors.DeadlineExceeded):
            await stub.info(InfoRequest(digest="a"))


async def test_a_deadline_ends_a_stream_that_is_being_read(tmp_path: Path) -> None:
    """Reading a stream fails in time as well, from whatever task it is read."""
    async with _served(tmp_path) as (stub, _, _):
        with context.deadline(0.2), pytest.raises(errors.DeadlineExceeded):
            async for _ in stub.read(ReadContentRequest(size=1, digest="wait")):
                pass


async def test_cancelling_the_caller_cancels_the_handler(tmp_path: Path) -> None:
    """Cancellation travels."""
    async with _served(tmp_path) as (stub, content, _):
        task = asyncio.create_task(stub.info(InfoRequest(digest="wait")))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(30):
            await content.cancelled.wait()


async def test_streams_and_their_errors(tmp_path: Path) -> None:
    """All messages of a stream arrive, then its error."""
    seen = []

    async def read(stub: ContentStub) -> None:
        async for message in stub.read(ReadContentRequest(size=30, digest="fail")):
            seen.append(len(message.data))  # noqa: PERF401 - what came before the error counts

    async with _served(tmp_path) as (stub, _, _):
        with pytest.raises(errors.DataLoss, match="damaged"):
            await read(stub)

    assert sum(seen) == 30 << 20


async def test_a_stream_may_be_left_early(tmp_path: Path) -> None:
    """Whoever stops reading lets go of the stream; the channel goes on."""
    async with _served(tmp_path) as (stub, _, channel):
        stream = stub.read(ReadContentRequest(size=1000))
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]
        await stub.info(InfoRequest(digest="a"))
        connection = await channel.open()
        assert connection.streams == {}


async def test_both_directions_at_once(tmp_path: Path) -> None:
    """Each message of a bidirectional stream is answered before the next is sent."""
    answered = asyncio.Event()

    async def messages() -> AsyncIterator[WriteContentRequest]:
        for _ in range(20):
            yield WriteContentRequest(data=bytes(1 << 20))
            await answered.wait()
            answered.clear()

    totals = []
    async with _served(tmp_path) as (stub, _, _):
        async for message in stub.write(messages()):
            totals.append(message.total)
            answered.set()

    assert totals == [n << 20 for n in range(1, 21)]


async def test_a_server_that_ends_a_stream_ends_the_sender(tmp_path: Path) -> None:
    """An error in answer to the first message arrives, and the task that still sends is ended."""
    stopped = asyncio.Event()

    async def messages() -> AsyncIterator[WriteContentRequest]:
        try:
            yield WriteContentRequest(ref="refuse")
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async with _served(tmp_path) as (stub, _, _):
        with pytest.raises(errors.AlreadyExists):
            async for _ in stub.write(messages()):
                pass
        async with asyncio.timeout(30):
            await stopped.wait()


async def test_a_source_of_messages_that_fails_fails_the_call(tmp_path: Path) -> None:
    """When the caller's own messages break off with an error, the caller gets that error and does not wait forever."""

    async def messages() -> AsyncIterator[WriteContentRequest]:
        yield WriteContentRequest(data=b"x")
        await asyncio.sleep(0.02)
        raise ValueError("the file is gone")

    async def write(stub: ContentStub) -> None:
        async for _ in stub.write(messages()):
            pass

    async with _served(tmp_path) as (stub, _, _):
        async with asyncio.timeout(30):
            with pytest.raises(ValueError, match="the file is gone"):
                await write(stub)


async def test_nobody_there(tmp_path: Path) -> None:
    """An absent socket and a stale one are Unavailable, by their address, and never NotFound."""
    channel = connect(f"unix://{tmp_path}/none.sock")
    with pytest.raises(errors.Unavailable, match=r"nothing answers at unix://.*none\.sock: No such file"):
        await ContentStub(channel).info(InfoRequest(digest="a"))


async def test_a_peer_that_accepts_and_says_nothing(tmp_path: Path) -> None:
    """A frozen peer costs its callers their deadline and nothing more."""
    accepted: list[asyncio.StreamWriter] = []
    server = await asyncio.start_unix_server(lambda _, writer: accepted.append(writer), tmp_path / "s.sock")
    channel = connect(f"unix://{tmp_path}/s.sock")
    with context.deadline(0.2), pytest.raises(errors.DeadlineExceeded):
        await ContentStub(channel).info(InfoRequest(digest="a"))
    for writer in accepted:
        writer.close()
    server.close()
    await asyncio.sleep(0.01)


async def test_a_restarted_peer_is_called_again(tmp_path: Path) -> None:
    """A call that was cut is Unavailable; the next call connects anew."""
    channel = connect(f"unix://{tmp_path}/s.sock")
    stub = ContentStub(channel)
    for _ in range(3):
        async with serve(f"unix://{tmp_path}/s.sock", [Content()], name="tested", grace=0.05):
            await stub.info(InfoRequest(digest="a"))
            held = asyncio.create_task(stub.info(InfoRequest(digest="wait")))
            await asyncio.sleep(0.05)
        with pytest.raises(errors.Unavailable, match="tested is stopping"):
            await held
        with pytest.raises(errors.Unavailable, match="nothing answers"):
            await stub.info(InfoRequest(digest="a"))
    channel.close()


async def test_a_peer_that_dies_in_the_middle(tmp_path: Path) -> None:
    """When the connection breaks, calls in flight are Unavailable."""
    async with _served(tmp_path) as (stub, _, channel):
        held = asyncio.create_task(stub.info(InfoRequest(digest="wait")))
        await asyncio.sleep(0.05)
        (await channel.open()).abort()
        with pytest.raises(errors.Unavailable, match="connection was lost"):
            await held
        await stub.info(InfoRequest(digest="a"))


async def test_many_calls_on_one_connection(tmp_path: Path) -> None:
    """Two thousand calls wait on one connection while others are answered."""
    async with _served(tmp_path) as (stub, _, channel):
        held = [asyncio.create_task(stub.info(InfoRequest(digest="wait"))) for _ in range(2000)]
        async with asyncio.timeout(30):
            while len((await channel.open()).streams) < 2000:
                await asyncio.sleep(0.01)
        async with asyncio.timeout(30):
            await stub.info(InfoRequest(digest="a"))
        for task in held:
            task.cancel()
        await asyncio.wait(held)


async def test_a_stalled_reader_delays_nobody(tmp_path: Path) -> None:
    """Streams that nobody reads fill their own windows, not the connection's."""
    async with _served(tmp_path) as (stub, _, _):
        stalled = [stub.read(ReadContentRequest(size=100)) for _ in range(10)]
        for stream in stalled:
            await anext(stream)
        await asyncio.sleep(0.2)
        async with asyncio.timeout(30):
            await stub.info(InfoRequest(digest="a"))
            seen = [message.offset async for message in stub.read(ReadContentRequest(size=8))]
        for stream in stalled:
            await stream.aclose()  # type: ignore[attr-defined]

    assert len(seen) == 8


async def test_a_server_of_grpclib(tmp_path: Path) -> None:
    """Our client talks to grpclib's own server, which allows 100 streams at once and answers all the same."""
    server = grpclib.server.Server([Content()], codec=Codec())
    await server.start(path=str(tmp_path / "s.sock"))
    channel = connect(f"unix://{tmp_path}/s.sock")
    stub = ContentStub(channel)
    answers = await asyncio.gather(*(stub.info(InfoRequest(digest=str(n))) for n in range(300)))
    read = [message.offset async for message in stub.read(ReadContentRequest(size=20))]
    with pytest.raises(errors.CarinaError):
        await stub.info(InfoRequest(digest="NotFound"))
    channel.close()
    server.close()
    await server.wait_closed()

    assert [answer.info.digest for answer in answers if answer.info] == [str(n) for n in range(300)]
    assert len(read) == 20


async def test_a_client_of_grpclib(tmp_path: Path) -> None:
    """grpclib's own client talks to our server."""
    async with _served(tmp_path):
        async with grpclib.client.Channel(path=str(tmp_path / "s.sock"), codec=Codec()) as channel:
            answer = await ContentStub(channel).info(InfoRequest(digest="a"))
            with pytest.raises(GRPCError, match="NotFound it is"):
                await ContentStub(channel).info(InfoRequest(digest="NotFound"))
            read = [message.offset async for message in ContentStub(channel).read(ReadContentRequest(size=20))]

    assert answer == InfoResponse(info=Info(digest="a"))
    assert len(read) == 20
