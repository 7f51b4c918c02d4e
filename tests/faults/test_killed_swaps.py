"""The metadata service killed at each step of a swap: the stores are where they were, or where they were to go."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from carina import context
from carina.backends.client import RemoteBackendRegistry
from carina.client.copying import ContentCopy
from carina.content.client import RemoteContentStore
from carina.digest import Digest
from carina.errors import CarinaError
from carina.rpc.client import connect
from carina.snapshots.client import RemoteSnapshotter
from carina.swap import Place
from carina.swap.client import RemoteSwapper
from conformance.content_suite import get, put
from support.content import directory
from support.points import points
from support.snapshots import serving

pytestmark = pytest.mark.timeout(200)
POINTS = [point for point in points() if point.startswith("metadatad.swap.")]
AFTER = {"metadatad.swap.recorded", "metadatad.swap.moved"}
ROOT = {"containerd.io/gc.root": "x"}


def service(base: Path, name: str, *arguments: str, fault: str = "") -> contextlib.AbstractContextManager[object]:
    socket = base / (f"{name}-{arguments[1]}.sock" if arguments else f"{name}.sock")
    words = ("-m", name, "--root", str(base / "root"), "--state", str(base), *arguments)
    return serving(socket, *words, environment={"CARINA_FAULT": fault})


async def _prepared(base: Path, other: Path) -> Digest:
    """A blob in both content stores, a snapshot in use."""
    place = Place(address=f"unix://{other}/contentd.sock")
    channels = [connect(f"unix://{path}") for path in (base / "metadatad.sock", base / "contentd.sock")]
    there = connect(place.address)
    with context.within(namespace="one"):
        digest = await put(RemoteContentStore(channels[0]), b"data", ROOT)
        await RemoteSnapshotter(channels[0], "native").prepare("used", labels=ROOT)
        async for page in RemoteSwapper(channels[0]).missing("content", place):
            for blob in page.blobs:
                stores = RemoteContentStore(channels[1]), RemoteContentStore(there)
                await ContentCopy(stores[0], page.source, stores[1], place, lambda _: None).copy(blob)
    for channel in (*channels, there):
        channel.close()
    return digest


async def _swap(base: Path, other: Path) -> None:
    channel = connect(f"unix://{base}/metadatad.sock")
    swapper = RemoteSwapper(channel)
    try:
        await swapper.swap(["content"], Place(address=f"unix://{other}/contentd.sock"))
        await swapper.swap(["snapshots.native"], Place(address=f"unix://{other}/snapshotd-native.sock"))
    finally:
        channel.close()


async def _addresses(base: Path) -> dict[str, str]:
    channel = connect(f"unix://{base}/metadatad.sock")
    found = {one.name: one.address for one in await RemoteBackendRegistry(channel).list()}
    channel.close()
    return found


async def _works(base: Path, digest: Digest) -> None:
    channel = connect(f"unix://{base}/metadatad.sock")
    content, snapshotter = RemoteContentStore(channel), RemoteSnapshotter(channel, "native")
    with context.within(namespace="one"):
        assert await get(content, digest) == b"data"
        assert str(base / "root") in (await snapshotter.mounts("used"))[0].source
        new = await put(content, b"new", ROOT)
        assert await get(content, new) == b"new"
        await content.delete(new)
    channel.close()


@pytest.mark.root
@pytest.mark.parametrize("turn", [1, 2])
@pytest.mark.parametrize("point", POINTS)
def test_a_swap_that_is_cut_is_old_or_new(point: str, turn: int) -> None:
    """Of the content's, the first, and of the snapshotter's, the second: everything is found again, and goes on."""
    with directory() as base, directory() as other, contextlib.ExitStack() as stack:
        for path in (base, other):
            stack.enter_context(service(path, "contentd"))
            stack.enter_context(service(path, "snapshotd", "--snapshotter", "native"))
        with service(base, "metadatad", fault=f"{point}:{turn}") as doomed:
            digest = asyncio.run(_prepared(base, other))
            with pytest.raises(CarinaError):
                asyncio.run(_swap(base, other))
            assert doomed.wait(20) == -9  # type: ignore[attr-defined]
        with service(base, "metadatad"):
            found = asyncio.run(_addresses(base))
            moved = {name for name, address in found.items() if address.startswith(f"unix://{other}/")}
            done = ["content", "native"][: turn if point in AFTER else turn - 1]
            assert moved == set(done)
            asyncio.run(_works(base, digest))
            asyncio.run(_swap(base, other))
            asyncio.run(_works(base, digest))


@pytest.mark.root
@pytest.mark.parametrize("point", [point for point in points() if point.startswith("gatewayd.swap.")])
def test_a_service_behind_the_gateway_is_old_or_new(point: str) -> None:
    """The gateway killed in the middle of moving imaged knows one address after it, and moves it the next time."""

    async def move(to: Place) -> int:
        channel = connect(f"unix://{base}/carina.sock")
        try:
            return len(await RemoteSwapper(channel).swap(["images"], to))
        finally:
            channel.close()

    words = ("-m", "gatewayd", "--root", "{base}/root", "--state", "{base}")
    with directory() as base, directory() as other, service(other, "imaged"):
        arguments = [word.format(base=base) for word in words]
        there = Place(address=f"unix://{other}/imaged.sock")
        with serving(base / "carina.sock", *arguments, environment={"CARINA_FAULT": point}) as doomed:
            with pytest.raises(CarinaError):
                asyncio.run(move(there))
            assert doomed.wait(20) == -9
        with serving(base / "carina.sock", *arguments):
            assert asyncio.run(move(there)) == (0 if point.endswith("recorded") else 1)
            assert asyncio.run(move(there)) == 0
