"""The metadata service killed again and again in the middle of everything: nothing is lost, nothing is left."""

import asyncio
import contextlib
import random
from pathlib import Path

import pytest

from carina import context
from carina.config import load
from carina.content.client import RemoteContentStore
from carina.digest import Digest
from carina.errors import AlreadyExists, CarinaError, NotFound
from carina.gc.client import RemoteCollector
from carina.rpc.client import Channel, connect
from carina.snapshots.client import RemoteSnapshotter
from support.content import directory
from support.snapshots import serving

KILLS = 5
ROOT = {"containerd.io/gc.root": "x"}


def service(base: Path, name: str, *arguments: str) -> contextlib.AbstractContextManager[object]:
    socket = base / (f"{name}-{arguments[1]}.sock" if arguments else f"{name}.sock")
    return serving(socket, "-m", name, "--root", str(base / "root"), "--state", str(base), *arguments)


async def work(channel: Channel, number: int, acknowledged: dict[str, Digest]) -> None:
    """Make and remove blobs and snapshots until the service dies; note what it acknowledged."""
    content, snapshotter = RemoteContentStore(channel), RemoteSnapshotter(channel, "native")
    for turn in range(1000):
        key = f"{number}-{turn}"
        data = key.encode() * 500
        digest = Digest.of(data)
        async with await content.writer(key, expected=digest) as writer:
            await writer.write(data)
            await writer.commit(expected=digest, labels=ROOT)
        await snapshotter.prepare(f"work-{key}", labels=ROOT)
        await snapshotter.commit(key, f"work-{key}", ROOT)
        acknowledged[key] = digest
        if turn % 2:
            acknowledged.pop(key)
            await content.delete(digest)
            await snapshotter.remove(key)


async def until_killed(address: str, seconds: float, process: object, acknowledged: dict[str, Digest]) -> None:
    channel = connect(address)
    with context.within(namespace="one"):
        async with asyncio.TaskGroup() as tasks:
            for number in range(3):
                tasks.create_task(_tolerant(work(channel, len(acknowledged) * 10 + number, acknowledged)))
            await asyncio.sleep(seconds)
            async with asyncio.timeout(30):
                while not acknowledged:
                    await asyncio.sleep(0.01)
            process.kill()  # type: ignore[attr-defined]
    channel.close()


async def _tolerant(work: object) -> None:
    with contextlib.suppress(CarinaError):
        await work  # type: ignore[misc]


async def clean_up(address: str, acknowledged: dict[str, Digest]) -> None:
    """What was acknowledged is there; remove everything."""
    channel = connect(address)
    content, snapshotter = RemoteContentStore(channel), RemoteSnapshotter(channel, "native")
    with context.within(namespace="one"):
        for key, digest in acknowledged.items():
            assert (await content.info(digest)).size == len(key) * 500
            assert (await snapshotter.stat(key)).name == key
        for info in [info async for info in content.walk()]:
            await content.delete(info.digest)
        for status in await content.statuses():
            await content.abort(status.ref)
        for name in [info.name async for info in snapshotter.walk()]:
            with contextlib.suppress(NotFound, AlreadyExists):
                await snapshotter.remove(name)
        await RemoteCollector(channel).run(sync=True)
    channel.close()


async def until_empty(base: Path) -> None:
    """Wait until the back ends have nothing: what could not be removed at once is tried again half a minute later."""
    async with asyncio.timeout(100):
        while await left(base):
            await asyncio.sleep(0.1)


async def left(base: Path) -> list[str]:
    """What the back ends still have."""
    contentd, snapshotd = connect(f"unix://{base}/contentd.sock"), connect(f"unix://{base}/snapshotd-native.sock")
    store = RemoteContentStore(contentd)
    result = [str(info.digest) async for info in store.walk()] + [status.ref for status in await store.statuses()]
    result += [info.name async for info in RemoteSnapshotter(snapshotd).walk()]
    contentd.close()
    snapshotd.close()
    return result


@pytest.mark.timeout(150)
def test_killed_again_and_again() -> None:
    """After each kill everything acknowledged is there, and in the end the back ends are empty."""
    acknowledged: dict[str, Digest] = {}
    chance = random.Random(4)
    with directory() as base, service(base, "contentd"), service(base, "snapshotd", "--snapshotter", "native"):
        address = load(None, root=base / "root", state=base).services["metadata"]
        for _ in range(KILLS):
            with service(base, "metadatad") as process:
                asyncio.run(until_killed(address, chance.uniform(0.1, 0.6), process, acknowledged))
        with service(base, "metadatad"):
            asyncio.run(clean_up(address, acknowledged))
            asyncio.run(until_empty(base))
    assert acknowledged != {}
