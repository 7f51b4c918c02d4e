"""A real containerd as back end: it has namespaces and a collector of its own."""

import shutil
from collections.abc import Iterator

import pytest

from carina import context
from carina.config import ProxyPlugin
from carina.errors import FailedPrecondition, NotFound
from carina.leases import Lease
from carina.leases.client import RemoteLeaseManager
from carina.rpc.client import connect
from carina.snapshots import Kind
from carina.snapshots.client import RemoteSnapshotter
from conformance.content_suite import get, put
from metadatad.backends import Settings
from support.content import containerd, directory
from support.views import metadata

ROOT = {"containerd.io/gc.root": "x"}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with directory() as path, containerd(path) as address:
        yield address


@pytest.mark.root
@pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd")
async def test_containerd_keeps_our_objects(address: str) -> None:
    """Blobs and snapshots live over there in one namespace under a standing lease, whatever is collected there."""
    plugins = [
        ProxyPlugin(name="blobs", type="content", address=address, namespace="carina", lease="carina"),
        ProxyPlugin(
            name="trees", type="snapshot", address=address, namespace="carina", snapshotter="native", lease="carina"
        ),
    ]
    with directory() as path:
        async with metadata(path, plugins=plugins, settings=Settings(content="blobs")) as (_, registry, records, gc):
            found = {backend.name: backend for backend in await registry.list()}
            assert (found["blobs"].error, found["trees"].error) == ("", "")
            assert "root" in found["blobs"].exports
            trees = registry.snapshotter("trees")
            with context.within(namespace="one"):
                digest = await put(registry.content, b"data", ROOT)
                await trees.prepare("key", labels=ROOT)
                await trees.commit("name", "key", ROOT)
                await _collect_over_there(address)
                await trees.prepare("free", labels=ROOT)
                # It is older than parents named at commit, and would answer that all is well.
                with pytest.raises(FailedPrecondition, match="can't put it on 'name'"):
                    await trees.commit("rebased", "free", ROOT, parent="name")
                with pytest.raises(NotFound):
                    await trees.stat("rebased")
                await trees.remove("free")
                assert await get(registry.content, digest) == b"data"
                assert (await trees.stat("name")).kind is Kind.COMMITTED
                await registry.content.delete(digest)
                await trees.remove("name")
                await gc.run(sync=True)
            assert await records.read(lambda c: c.execute("SELECT count(*) FROM tombstones").fetchone()[0]) == 0
    channel = connect(address)
    with context.within(namespace="carina"):
        assert [info.name async for info in RemoteSnapshotter(channel, "native").walk()] == []
    channel.close()


async def _collect_over_there(address: str) -> None:
    """Deleting a lease with `sync` makes containerd collect at once."""
    channel = connect(address)
    with context.within(namespace="carina"):
        leases = RemoteLeaseManager(channel)
        await leases.create(Lease(id="short"))
        await leases.delete("short", sync=True)
        with pytest.raises(NotFound):
            await leases.delete("short")
    channel.close()
