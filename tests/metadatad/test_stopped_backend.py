"""A back end that is stopped in the middle of a removal, and everybody who has nothing to do with it."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from carina import context
from carina.config import ProxyPlugin
from carina.content.client import RemoteContentStore
from carina.descriptor import Descriptor
from carina.gc.client import RemoteCollector, RemoteExplainer
from carina.images import Image
from carina.images.client import RemoteImageStore
from carina.leases import Lease
from carina.leases.client import RemoteLeaseManager
from carina.rpc.client import Channel, connect
from carina.snapshots.client import RemoteSnapshotter
from conformance.content_suite import get, put
from metadatad.backends import Settings
from support.content import directory
from support.snapshots import snapshotd
from support.views import content_backend, metadata, snapshot_backend

PATIENCE = Settings(answer_seconds=600, work_seconds=600)
"""A call that waits for the stopped back end is not over before the test gives up."""
LIMIT = 60.0


@pytest.fixture
def path() -> Iterator[Path]:
    with directory() as found:
        yield found


async def leased(channel: Channel, snapshotter: str) -> None:
    """A snapshot that a lease alone keeps."""
    leases = RemoteLeaseManager(channel)
    await leases.create(Lease(id=snapshotter))
    with context.within(lease=snapshotter):
        await RemoteSnapshotter(channel, snapshotter).prepare("key")


async def work(channel: Channel) -> None:
    """Calls of every kind that need no snapshotter, or another one; image and lease are deleted synchronously."""
    content, images = RemoteContentStore(channel), RemoteImageStore(channel)
    leases, collector = RemoteLeaseManager(channel), RemoteCollector(channel)
    await leases.create(Lease(id="pull"))
    with context.within(lease="pull"):
        digest = await put(content, b"manifest")
        assert await get(content, digest) == b"manifest"
    await images.create(Image(name="i", target=Descriptor(media_type="m", digest=digest, size=8)))
    await leases.delete("pull", sync=True)
    assert [image.name for image in await images.list()] == ["i"]
    assert (await RemoteExplainer(channel).why("content", digest)).chains != ()
    await images.delete("i", sync=True)
    assert [info async for info in content.walk()] == []
    await leased(channel, "native")
    await leases.delete("native", sync=True)
    await RemoteExplainer(channel).plan()
    await collector.run()
    assert (await collector.statistics()).remaining[0].type == "snapshot/stopped"


async def test_nobody_waits_for_a_stopped_back_end_without_need(path: Path) -> None:
    """While one snapshotter is stopped in a removal, all other calls are answered, synchronous deletions too.

    When it goes on, it removes what it was told to.
    """
    with snapshotd(path, "native") as process:
        plugin = ProxyPlugin(name="stopped", type="snapshot", address=f"unix://{path}/snapshotd-native.sock")
        async with content_backend(path) as blobs, snapshot_backend(path) as trees:
            async with metadata(path, settings=PATIENCE, plugins=[plugin]) as (address, _, _, _):
                channel, behind = connect(address), connect(plugin.address)
                try:
                    with context.within(namespace="one"):
                        await leased(channel, "stopped")
                        assert [info async for info in RemoteSnapshotter(behind).walk()] != []
                        os.kill(process.pid, signal.SIGSTOP)
                        async with asyncio.timeout(LIMIT):
                            await RemoteLeaseManager(channel).delete("stopped")
                            await RemoteCollector(channel).run()
                            await work(channel)
                        assert [info async for info in blobs.walk()] == []
                        assert [info async for info in trees.walk()] == []
                        os.kill(process.pid, signal.SIGCONT)
                        async with asyncio.timeout(LIMIT):
                            while [info async for info in RemoteSnapshotter(behind).walk()]:
                                await asyncio.sleep(0.05)
                finally:
                    os.kill(process.pid, signal.SIGCONT)
                    channel.close()
                    behind.close()
