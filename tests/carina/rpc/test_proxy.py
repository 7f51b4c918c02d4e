"""Calls that are passed on: everything arrives as it was sent, both ways."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

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
from carina.rpc.client import connect
from carina.rpc.codec import encode
from carina.rpc.server import Listener, serve

INFO = "/containerd.services.content.v1.Content/Info"
WRITE = "/containerd.services.content.v1.Content/Write"


class Content(ContentBase):
    def __init__(self) -> None:
        self.calls: list[context.Call] = []
        self.waiting = 0
        self.read_so_far = 0

    async def info(self, message: InfoRequest) -> InfoResponse:
        self.calls.append(context.current())
        if message.digest == "wait":
            self.waiting += 1
            try:
                await asyncio.sleep(60)
            finally:
                self.waiting -= 1
        if message.digest == "missing":
            raise errors.NotFound("content missing: not found – wirklich")
        return InfoResponse(info=Info(digest=message.digest))

    async def read(self, message: ReadContentRequest) -> AsyncIterator[ReadContentResponse]:
        for at in range(message.size):
            self.read_so_far = at
            yield ReadContentResponse(offset=at, data=bytes([at % 251]) * (1 << 20))

    async def write(self, messages: AsyncIterator[WriteContentRequest]) -> AsyncIterator[WriteContentResponse]:
        total = 0
        async for message in messages:
            if message.ref == "refuse":
                raise errors.AlreadyExists("content refuse: already exists")
            total += len(message.data)
            yield WriteContentResponse(total=total)


@contextlib.asynccontextmanager
async def _gateway(directory: Path, *, grace: float = 0.2) -> AsyncIterator[tuple[str, Content, Listener]]:
    content = Content()
    upstream = connect(f"unix://{directory}/back.sock")
    async with serve(f"unix://{directory}/back.sock", [content], name="back", grace=0.1):
        front = f"unix://{directory}/front.sock"
        async with serve(front, [], name="front", grace=grace, route=lambda path: upstream) as listener:
            yield front, content, listener
    upstream.close()


async def test_unary_calls_with_their_context_and_errors(tmp_path: Path) -> None:
    """Messages, metadata, deadline, status and text pass through."""
    async with _gateway(tmp_path) as (address, content, listener):
        channel = connect(address)
        stub = ContentStub(channel)
        call = context.Call(namespace="n", lease="l", trace="t", deadline=time.monotonic() + 20)
        with context.use(call):
            answer = await stub.info(InfoRequest(digest="a"))
        with pytest.raises(errors.NotFound, match="content missing: not found – wirklich"):
            await stub.info(InfoRequest(digest="missing"))
        channel.close()
        assert listener.in_flight == 0
    received = content.calls[0]

    assert answer == InfoResponse(info=Info(digest="a"))
    assert (received.namespace, received.lease, received.trace) == ("n", "l", "t")
    assert received.remaining is not None
    assert 18 < received.remaining < 22


async def test_streams_in_all_directions(tmp_path: Path) -> None:
    """100 MiB down and 100 MiB up arrive whole and in order."""

    async def messages() -> AsyncIterator[WriteContentRequest]:
        for _ in range(100):
            yield WriteContentRequest(data=bytes(1 << 20))

    async with _gateway(tmp_path) as (address, _, listener):
        channel = connect(address)
        stub = ContentStub(channel)
        at = 0
        async for message in stub.read(ReadContentRequest(size=100)):
            assert message.data == bytes([at % 251]) * (1 << 20)
            at += 1
        totals = [answer.total async for answer in stub.write(messages())]
        channel.close()
        assert listener.in_flight == 0

    assert at == 100
    assert totals[-1] == 100 << 20


async def test_a_slow_reader_holds_the_sender_back(tmp_path: Path) -> None:
    """Nothing piles up in the gateway: the back end gets no further ahead than the windows."""
    async with _gateway(tmp_path) as (address, content, _):
        channel = connect(address)
        stream = ContentStub(channel).read(ReadContentRequest(size=1000))
        await anext(stream)
        await asyncio.sleep(0.3)
        ahead = content.read_so_far
        await stream.aclose()  # type: ignore[attr-defined]
        channel.close()

    assert ahead < 20


async def test_cancellation_travels_to_the_back(tmp_path: Path) -> None:
    """When the client lets go, the back end's handler is cancelled, and nothing is left."""
    async with _gateway(tmp_path) as (address, content, listener):
        channel = connect(address)
        task = asyncio.create_task(ContentStub(channel).info(InfoRequest(digest="wait")))
        while not content.waiting:
            await asyncio.sleep(0.01)
        task.cancel()
        async with asyncio.timeout(30):
            while content.waiting or listener.in_flight:
                await asyncio.sleep(0.01)
        channel.close()


async def test_a_refusal_in_the_middle_of_a_request(tmp_path: Path) -> None:
    """An error that comes while the client still sends reaches it, and the stream ends."""

    async def messages() -> AsyncIterator[WriteContentRequest]:
        yield WriteContentRequest(ref="refuse")
        await asyncio.sleep(60)

    async with _gateway(tmp_path) as (address, _, listener):
        channel = connect(address)
        with pytest.raises(errors.AlreadyExists):
            async for _ in ContentStub(channel).write(messages()):
                pass
        async with asyncio.timeout(30):
            while listener.in_flight:
                await asyncio.sleep(0.01)
        channel.close()


async def test_a_back_end_that_is_away_costs_its_calls_only(tmp_path: Path) -> None:
    """While it is away calls are Unavailable at once; calls in flight too; after its return they work."""
    back = f"unix://{tmp_path}/back.sock"
    upstream = connect(back)
    async with serve(f"unix://{tmp_path}/f.sock", [], name="front", grace=0.1, route=lambda path: upstream):
        channel = connect(f"unix://{tmp_path}/f.sock")
        stub = ContentStub(channel)
        for _ in range(2):
            with pytest.raises(errors.Unavailable, match=r"nothing answers at .*back\.sock"):
                await stub.info(InfoRequest(digest="a"))
            async with serve(back, [Content()], name="back", grace=0.05):
                await stub.info(InfoRequest(digest="a"))
                held = asyncio.create_task(stub.info(InfoRequest(digest="wait")))
                await asyncio.sleep(0.05)
            with pytest.raises(errors.Unavailable, match="back is stopping"):
                await held
        async with serve(back, [Content()], name="back", grace=0.05):
            held = asyncio.create_task(stub.info(InfoRequest(digest="wait")))
            await asyncio.sleep(0.05)
            (await upstream.open()).abort()
            with pytest.raises(errors.Unavailable, match="connection was lost"):
                await held
            await stub.info(InfoRequest(digest="a"))
        channel.close()
    upstream.close()


async def test_draining_answers_what_is_left(tmp_path: Path) -> None:
    """A gateway that stops answers the calls that it still passes on, and lets go of the back end."""
    async with _gateway(tmp_path, grace=0.1) as (address, content, _):
        channel = connect(address)
        held = asyncio.create_task(ContentStub(channel).info(InfoRequest(digest="wait")))
        while not content.waiting:
            await asyncio.sleep(0.01)
    with pytest.raises(errors.Unavailable, match="front is stopping"):
        await held
    channel.close()

    assert content.waiting == 0


async def test_a_c_core_client_through_the_gateway(tmp_path: Path) -> None:
    """Google's client: 1,000 held calls, large headers, compression and 8 MiB messages through the gateway."""

    def calls(address: str, content: Content) -> tuple[float, int]:
        with grpc.insecure_channel(address, options=[("grpc.max_metadata_size", 1 << 20)]) as channel:
            info = channel.unary_unary(INFO)
            held = [info.future(encode(InfoRequest(digest="wait")), timeout=30) for _ in range(1000)]
            while content.waiting < 1000:
                time.sleep(0.01)
            start = time.perf_counter()
            info(encode(InfoRequest(digest="a")), metadata=[("containerd-lease", "l" * 70_000)], timeout=30)
            took = time.perf_counter() - start
            info(encode(InfoRequest(digest="z" * 100_000)), compression=grpc.Compression.Gzip, timeout=30)
            write: Any = channel.stream_stream(WRITE)
            answers = list(write(iter([encode(WriteContentRequest(data=bytes(8 << 20)))] * 3)))
            for call in held:
                call.cancel()
            return took, len(answers)

    async with _gateway(tmp_path) as (address, content, listener):
        took, answers = await asyncio.to_thread(calls, address, content)
        async with asyncio.timeout(30):
            while listener.in_flight:
                await asyncio.sleep(0.01)

    assert took < 20
    assert answers == 3


async def test_what_the_gateway_adds_to_a_call(tmp_path: Path) -> None:
    """A unary call through the gateway takes less than a millisecond more."""
    async with _gateway(tmp_path) as (address, _, _):
        took = []
        for where in (address, f"unix://{tmp_path}/back.sock"):
            channel = connect(where)
            stub = ContentStub(channel)
            times = []
            for _ in range(300):
                start = time.perf_counter()
                await stub.info(InfoRequest(digest="a"))
                times.append(time.perf_counter() - start)
            took.append(sorted(times)[150])
            channel.close()

    assert took[0] - took[1] < 0.001
