"""What is reported of a back end: what it says of itself, and what the configuration says of it."""

import asyncio
from pathlib import Path

from carina.backends import Backend
from carina.config import ProxyPlugin
from carina.introspection import Plugin
from carina.platforms import Platform
from carina.rpc.client import connect
from carina.rpc.server import serve
from carina.snapshots.directory import DirectorySnapshotter
from carina.snapshots.server import SnapshotsService, only
from metadatad.description import TYPES, described
from metadatad.plugins import Plugins
from snapshotd.rpc import IntrospectionService
from support.content import directory
from support.views import metadata


async def ask(stated: Backend, plugin: Plugin | None, path: Path) -> Backend:
    address = f"unix://{path}/it.sock"
    silent = SnapshotsService(only(await asyncio.to_thread(DirectorySnapshotter, path)))
    handlers = [IntrospectionService(plugin) if plugin else silent]
    async with serve(address, handlers, name="plugin"):
        channel = connect(address)
        try:
            return await described(stated, channel)
        finally:
            channel.close()


async def test_it_is_described_by_itself_and_by_the_configuration(tmp_path: Path) -> None:
    """The only snapshotter over there is meant, unless another one is named; what is configured wins."""
    own = Plugin(type=TYPES["snapshot"], id="trees", exports={"root": "/t", "a": "b"}, capabilities=("rebase",))
    bare = Backend(type="snapshot", name="mine", address="unix:///x")
    found = await ask(bare, own, tmp_path)
    assert (found.exports, found.capabilities) == ({"root": "/t", "a": "b"}, ("rebase",))

    stated = Backend(type="snapshot", name="mine", address="", exports={"a": "c"}, capabilities=("remap-ids",))
    found = await ask(stated, own, tmp_path)
    assert (found.exports, found.capabilities) == ({"root": "/t", "a": "c"}, ("remap-ids",))

    other = Backend(type="snapshot", name="mine", address="", snapshotter="another")
    assert await ask(other, own, tmp_path) == other


async def test_one_that_does_not_describe_itself_is_as_configured(tmp_path: Path) -> None:
    """As with containerd, whose proxies have platform, exports and capabilities from its configuration alone."""
    stated = Backend(type="snapshot", name="mine", address="", capabilities=("rebase",), exports={"a": "b"})
    assert await ask(stated, None, tmp_path) == stated


async def test_introspection_tells_what_is_configured() -> None:
    """Clients ask there whether a snapshotter wants annotations, and for which platform it is."""
    exports = {"enable_remote_snapshot_annotations": "true"}
    with directory() as path:
        plugin = ProxyPlugin(
            name="mine",
            type="snapshot",
            address=f"unix://{path}/mine.sock",
            platform="linux/arm64",
            exports=exports,
            capabilities=("rebase",),
        )
        async with metadata(path, plugins=[plugin]) as (_, registry, _, _):
            plugins = Plugins(database=path, registry=registry)
            (found,) = await plugins.plugins(["id==mine"])
    assert found.platforms == (Platform(os="linux", architecture="arm64"),)
    assert found.capabilities == ("rebase",)
    assert found.exports == {**exports, "address": f"unix://{path}/mine.sock"}
    assert "nothing answers" in found.error
