"""Transfers over a socket: the client's adapter, the streams beside a call, and the service."""

import asyncio
import contextlib
import io
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from carina import context
from carina.api.containerd.services.transfer.v1 import TransferRequest, TransferStub
from carina.api.containerd.types.transfer import ImageExportStream, ImageImportStream
from carina.api.google.protobuf import Any as WireAny
from carina.errors import AlreadyExists, FailedPrecondition, NotFound, Unimplemented
from carina.platforms import Platform
from carina.rpc.client import connect
from carina.rpc.server import serve
from carina.transfer import Access, Credentials, ExtraReference, Progress, Store
from carina.transfer.client import RemoteTransfer
from carina.transfer.server import StreamingService, TransferService, receive, send
from carina.transfer.streams import Item, Pipe, Streams
from support.image import build
from support.pulls import Hostile, World

HOST = Platform(os="linux", architecture="amd64")


@contextlib.asynccontextmanager
async def served(world: World, directory: Path) -> AsyncIterator[RemoteTransfer]:
    streams = Streams()
    address = f"unix://{directory}/imaged.sock"
    handlers = [TransferService(world.transfers(), streams), StreamingService(streams)]
    async with serve(address, handlers, name="imaged", grace=1):
        with contextlib.closing(connect(address)) as channel:
            yield RemoteTransfer(channel)


async def test_a_pull_over_a_socket_tells_its_progress(world: World, hostile: Hostile, tmp_path: Path) -> None:
    """Every step arrives before the call returns, the last one last."""
    reference = hostile.put(build())
    seen: list[Progress] = []

    async with served(world, tmp_path) as transfer:
        await transfer.pull(
            reference, platforms=[HOST], unpack=[(HOST, "native")], labels={"a": "b"}, on_progress=seen.append
        )

    assert world.images.images[reference].labels == {"a": "b"}
    assert seen[0].event == f"Resolving from OCI Registry ({reference})"
    assert seen[-1].event == f"Completed pull from OCI Registry ({reference})"
    assert any(one.event == "extracted" and one.descriptor is not None for one in seen)


async def test_errors_arrive_as_they_were_raised(world: World, hostile: Hostile, tmp_path: Path) -> None:
    """Class and sentence survive the wire, with and without a progress stream."""
    async with served(world, tmp_path) as transfer:
        with pytest.raises(NotFound, match="has no tag 7 in repository some/image"):
            await transfer.pull(f"{hostile.host}/some/image:7")
        with pytest.raises(NotFound, match="has no tag 7 in repository some/image"):
            await transfer.pull(f"{hostile.host}/some/image:7", on_progress=lambda progress: None)


async def test_credentials_are_asked_for_over_a_stream(world: World, hostile: Hostile, tmp_path: Path) -> None:
    """The service asks the client for credentials when a registry wants some."""
    reference = hostile.put(build())
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") == "Basic dTpw":
            return None
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    async def credentials(host: str, challenges: list[str]) -> Credentials:
        asked.append(host)
        return Credentials(username="u", secret="p")

    hostile.answers["*"] = answer
    async with served(world, tmp_path) as transfer:
        await transfer.fetch(
            reference, Store(name=reference, platforms=(HOST,)), access=Access(credentials=credentials)
        )

    assert asked == [hostile.host]
    assert reference in world.images.images


async def test_archives_go_through_streams(world: World, hostile: Hostile, tmp_path: Path) -> None:
    """Export and import over a socket, chunk by chunk, bring the same image back."""
    image = build()
    reference = hostile.put(image)
    into = Store(
        name="", platforms=(HOST,), extra_references=(ExtraReference(name="x", is_prefix=True, allow_overwrite=True),)
    )
    other = World()

    async with served(world, tmp_path) as transfer:
        await transfer.pull(reference, platforms=[HOST])
        data = b"".join([chunk async for chunk in transfer.save(Store(name=reference))])
    (tmp_path / "second").mkdir()
    async with served(other, tmp_path / "second") as transfer:

        async def chunks() -> AsyncIterator[bytes]:
            stream = io.BytesIO(data)
            while chunk := stream.read(100_000):
                yield chunk

        await transfer.load(chunks(), into)
        await transfer.tag(reference, Store(name="tagged"))

    assert {name: one.target.digest for name, one in other.images.images.items()} == {
        reference: image.digest,
        "tagged": image.digest,
    }


async def test_a_stream_comes_back_as_it_went(world: World, tmp_path: Path) -> None:
    """From an import stream to an export stream the bytes are copied, both sides heeding their windows."""
    sent = secrets.token_bytes(3_000_000)

    async def chunks() -> AsyncIterator[bytes]:
        yield sent

    async with served(world, tmp_path) as transfer:
        async with (
            transfer._stream("import") as there,
            transfer._stream("export") as back,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(send(chunks(), there))
            source = WireAny(
                type_url="containerd.types.transfer.ImageImportStream", value=bytes(ImageImportStream(stream=there.id))
            )
            destination = WireAny(
                type_url="containerd.types.transfer.ImageExportStream", value=bytes(ImageExportStream(stream=back.id))
            )
            group.create_task(transfer._transfer.transfer(TransferRequest(source=source, destination=destination)))
            received = b"".join([chunk async for chunk in receive(back)])

    assert received == sent


async def test_pairs_that_make_no_use_case_are_named(world: World, tmp_path: Path) -> None:
    """An unknown pair is UNIMPLEMENTED, and says which it is; without a namespace nothing is done."""
    streams = Streams()
    address = f"unix://{tmp_path}/imaged.sock"
    request = TransferRequest(
        source=WireAny(type_url="types.googleapis.com/containerd.types.transfer.OCIRegistry"),
        destination=WireAny(type_url="containerd.types.transfer.OCIRegistry"),
    )
    async with serve(address, [TransferService(world.transfers(), streams)], name="imaged", grace=1):
        with contextlib.closing(connect(address)) as channel:
            with pytest.raises(Unimplemented, match="from OCIRegistry to OCIRegistry"):
                await TransferStub(channel).transfer(request)
            with context.use(context.Call()), pytest.raises(FailedPrecondition, match="namespace is required"):
                await TransferStub(channel).transfer(request)


async def test_streams_are_found_by_namespace_and_gone_after_use() -> None:
    """An id is taken once per namespace, and free again afterwards."""
    streams = Streams()
    with streams.register("a", "1") as stream:
        assert streams.get("a", "1") is stream
        with pytest.raises(AlreadyExists), streams.register("a", "1"):
            pass
        with pytest.raises(NotFound):
            streams.get("b", "1")
    with pytest.raises(NotFound):
        streams.get("a", "1")
    assert stream.incoming.closed


async def test_a_pipe_is_bounded_and_closable() -> None:
    """A full pipe makes its writer wait; a closed one gives what is in it, then ends."""
    pipe, item = Pipe(depth=1), Item("t", b"x")
    assert pipe.offer(item)
    assert not pipe.offer(item)
    waiting = asyncio.create_task(pipe.put(item))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await pipe.get() == item
    await waiting
    pipe.close()
    assert (await pipe.get(), await pipe.get()) == (item, None)
