"""Back ends moved to other places: what is refused, what goes on meanwhile, and what stays."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from carina import context
from carina.client.copying import ContentCopy
from carina.content.client import RemoteContentStore
from carina.content.server import ContentService
from carina.errors import CarinaError, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from carina.rpc.client import connect
from carina.rpc.server import serve
from carina.snapshots.client import RemoteSnapshotter
from carina.snapshots.server import SnapshotsService, only
from carina.swap import Place
from carina.swap.client import RemoteSwapper
from conformance.content_suite import get, put
from contentd.store import LocalContentStore
from snapshotd.native import Native
from snapshotd.snapshotter import Settings as SnapshotterSettings
from snapshotd.snapshotter import open_snapshotter
from support.content import directory
from support.views import View, view

ROOT = {"containerd.io/gc.root": "x"}


@pytest.fixture
async def service() -> AsyncIterator[View]:
    with directory() as path, context.within(namespace="one"):
        async with view(path) as made:
            yield made


@contextlib.asynccontextmanager
async def other_content(path: Path, *, labels: str = "other") -> AsyncIterator[tuple[Place, LocalContentStore]]:
    """A content store without a lane, at another address."""
    async with LocalContentStore(path / labels) as store:
        async with serve(f"unix://{path}/{labels}.sock", [ContentService(store)], name="other", grace=1.0):
            yield Place(address=f"unix://{path}/{labels}.sock"), store


@contextlib.asynccontextmanager
async def other_snapshotter(path: Path) -> AsyncIterator[Place]:
    async with open_snapshotter(path / "trees", Native(), SnapshotterSettings(durable=False)) as snapshotter:
        async with serve(f"unix://{path}/t.sock", [SnapshotsService(only(snapshotter))], name="trees", grace=1.0):
            yield Place(address=f"unix://{path}/t.sock")


async def bring(service: View, swapper: RemoteSwapper, to: Place) -> int:
    """Copy what is missing of the content; how many blobs that were."""
    copied, here, there = 0, connect(f"unix://{service.path}/c.sock"), connect(to.address)
    async for page in swapper.missing("content", to):
        copy = ContentCopy(RemoteContentStore(here), page.source, RemoteContentStore(there), to, lambda _: None)
        for blob in page.blobs:
            await copy.copy(blob)
            copied += 1
    here.close()
    there.close()
    return copied


@contextlib.asynccontextmanager
async def swapping(service: View) -> AsyncIterator[RemoteSwapper]:
    channel = connect(service.address)
    yield RemoteSwapper(channel)
    channel.close()


async def _addresses(service: View) -> dict[str, str]:
    return {backend.name: backend.address for backend in await service.backends.list()}


async def test_content_is_refused_until_every_blob_is_there(service: View) -> None:
    """What is missing is named; after a copy new writes go to the new store, and old and new blobs are read from it."""
    digest = await put(service.content, b"x" * 200_000, ROOT)
    async with other_content(service.path) as (place, store), swapping(service) as swapper:
        with pytest.raises(FailedPrecondition, match=f"lacks content {digest}; `carina content copy`"):
            await swapper.swap(["content"], place)
        assert await bring(service, swapper, place) == 1
        assert await bring(service, swapper, place) == 0
        assert await swapper.swap(["content"], place) == (f"content is at {place.address} now",)
        assert (await _addresses(service))["content"] == place.address
        new = await put(service.content, b"new", ROOT)
        assert {info.digest async for info in store.walk()} == {digest, new}
        assert await service.stored() == {digest}
        await service.blobs.delete(digest)
        assert await get(service.content, digest) == b"x" * 200_000
        with pytest.raises(FailedPrecondition, match="lacks content"):
            await swapper.swap(["content"], None)
    assert await service.rows("swaps") == 1


async def test_a_blob_of_another_size_is_refused(service: View) -> None:
    """A store that says it has a blob with other bytes does not get its place."""
    digest = await put(service.content, b"four", ROOT)
    async with other_content(service.path) as (place, store), swapping(service) as swapper:
        async with await store.writer("wrong") as writer:
            await writer.write(b"four")
            await writer.commit(expected=digest)
        path = next(path for path in (service.path / "other").rglob(digest.partition(":")[2]))
        path.chmod(0o600)
        path.write_bytes(b"longer")
        with pytest.raises(FailedPrecondition, match=r"is 6 bytes long and not 4"):
            await swapper.swap(["content"], place)


async def test_what_is_under_way_keeps_a_store_where_it_is(service: View) -> None:
    """An ingest, or a layer being unpacked, is named; once it has ended, the swap goes."""
    async with other_content(service.path) as (place, _), other_snapshotter(service.path) as trees:
        async with swapping(service) as swapper:
            async with await service.content.writer("begun") as writer:
                await writer.write(b"some")
                with pytest.raises(FailedPrecondition, match="under way: ingest 'begun' of namespace one"):
                    await swapper.swap(["content"], place)
            await service.content.abort("begun")
            await service.snapshotter.prepare("extract-1 sha256:x", labels=ROOT)
            with pytest.raises(FailedPrecondition, match="unpacking into snapshot 'extract-1 sha256:x'"):
                await swapper.swap(["content", "snapshots.native"], Place(address=trees.address))
            assert (await _addresses(service))["content"].endswith("/c.sock")
            await service.snapshotter.remove("extract-1 sha256:x")
            assert await swapper.swap(["snapshots.native"], trees)
            assert await swapper.swap(["content"], place)


async def test_a_snapshot_in_use_stays_and_what_is_built_on_it_follows(service: View) -> None:
    """It is mounted, committed and removed where it was; others are made at the new place; a restart knows all that."""
    async with other_snapshotter(service.path) as place, swapping(service) as swapper:
        mounts = await service.snapshotter.prepare("used", labels=ROOT)
        (said,) = await swapper.swap(["snapshots.native"], place)
        assert said.endswith(f"; 1 snapshot in use stays at unix://{service.path}/native.sock")
        assert await service.snapshotter.mounts("used") == mounts
        there = RemoteSnapshotter(channel := connect(place.address), "native")
        new = await service.snapshotter.prepare("new", labels=ROOT)
        assert str(service.path / "trees") in new[0].source
        assert len([info async for info in there.walk()]) == 1
        await service.snapshotter.commit("base", "used", ROOT)
        child = await service.snapshotter.prepare("child", "base", ROOT)
        assert str(service.path / "native") in child[0].source
        names = {info.name async for info in service.snapshotter.walk()}
        assert names == {"base", "child", "new"}
        assert await service.rows("stays") == 2
        with pytest.raises(FailedPrecondition, match=r"lacks snapshot one/1/used|lacks snapshot one/.*/base"):
            await swapper.swap(["snapshots.native"], Place(address=place.address, namespace="else"))
        for name in ("child", "base"):
            await service.snapshotter.remove(name)
        await service.registry.removers()["snapshot", "native"].run()
        assert await service.trees_there() == set()
        assert await service.rows("stays") == 0
        channel.close()


@pytest.mark.parametrize(
    ("services", "place", "error", "said"),
    [
        (["content"], Place(address="unix:///nowhere/x.sock"), Unavailable, "nothing answers at"),
        (["content"], Place(address="http://x"), InvalidArgument, "expected unix:///path"),
        (["content"], Place(address="{path}/native.sock"), Unavailable, "is no content store"),
        (["snapshots.native"], Place(address="{path}/c.sock"), Unavailable, "is no snapshotter"),
        (["diff"], Place(address="{path}/c.sock"), Unavailable, "is no differ"),
        (["content"], Place(address="{path}/http.sock"), Unavailable, "content can.t be moved"),
        (["content"], Place(address="{path}/mute.sock"), Unavailable, "content can.t be moved"),
        (["content"], Place(address="{path}/c.sock", lease="l"), InvalidArgument, "lease needs namespace"),
        (["content"], Place(address="{path}/c.sock", snapshotter="s"), InvalidArgument, "is for snapshotters"),
        (["nothing"], Place(address="{path}/c.sock"), NotFound, "no service 'nothing'"),
        (["snapshots.none"], Place(address="{path}/c.sock"), NotFound, "no service 'snapshots.none'"),
        (["content", "snapshots.native"], Place(address="{path}/o.sock"), Unavailable, "nothing answers at"),
    ],
)
async def test_bad_input_is_clear_at_once_and_changes_nothing(
    service: View, services: list[str], place: Place, error: type[CarinaError], said: str
) -> None:
    """An unreachable service, one that speaks something else or another version of the API, a place that can't be."""

    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    before = await _addresses(service)
    servers = [
        await asyncio.start_unix_server(http, service.path / "http.sock"),
        await asyncio.start_unix_server(mute, service.path / "mute.sock"),
    ]
    address = place.address.replace("{path}", f"unix://{service.path}")
    to = Place(address=address, namespace=place.namespace, snapshotter=place.snapshotter, lease=place.lease)
    async with swapping(service) as swapper:
        with pytest.raises(error, match=said):
            await swapper.swap(services, to)
    for server in servers:
        server.close()
    assert await _addresses(service) == before
    assert await service.rows("swaps") == 0
    assert await get(service.content, await put(service.content, b"still", ROOT)) == b"still"


async def test_calls_go_on_while_stores_are_moved_to_and_fro(service: View) -> None:
    """Readers and snapshots see no error, and lose nothing, however often the stores move below them."""
    done = asyncio.Event()
    large = await put(service.content, b"x" * 300_000, ROOT)
    small = await put(service.content, b"small", ROOT)

    async def work(number: int) -> int:
        turn = 0
        while not done.is_set():
            assert await get(service.content, large) == b"x" * 300_000
            assert await get(service.content, small) == b"small"
            await service.snapshotter.prepare(f"{number}-{turn}", labels=ROOT)
            turn += 1
        return turn

    async with other_content(service.path) as (place, _), other_snapshotter(service.path) as trees:
        async with swapping(service) as swapper, asyncio.TaskGroup() as tasks:
            await bring(service, swapper, place)
            working = [tasks.create_task(work(number)) for number in range(2)]
            for move in range(4):
                assert await swapper.swap(["content"], (place, None)[move % 2])
                assert await swapper.swap(["snapshots.native"], (trees, None)[move % 2])
            done.set()
        made = sum(task.result() for task in working)
        assert len([info async for info in service.snapshotter.walk()]) == made
