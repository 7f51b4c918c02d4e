"""The snapshotter suite on the metadata service's view: over sockets, through the gateway, on a restless plugin."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from carina import context
from carina.aio.threads import in_thread
from carina.config import ProxyPlugin
from carina.rpc.client import connect
from carina.snapshots import Snapshotter
from carina.snapshots.client import RemoteSnapshotter
from conformance.snapshots_suite import SnapshotterSuite
from metadatad.backends import Registry
from snapshotd.overlay import Overlay
from support.constellation import Constellation
from support.content import directory
from support.plugins import Plugin, Tormenting
from support.views import metadata, view


class TestNamespaced(SnapshotterSuite):
    layers = 16

    @pytest.fixture
    async def snapshotter(self) -> AsyncIterator[Snapshotter]:
        with directory() as path:
            async with view(path) as service:
                with context.within(namespace="one"):
                    yield service.snapshotter


class TestNamespacedOverlay(SnapshotterSuite):
    renames_directories = False
    rebases = True
    layers = 16

    @pytest.fixture
    async def snapshotter(self) -> AsyncIterator[Snapshotter]:
        with directory() as path:
            async with view(path, driver=Overlay()) as service:
                with context.within(namespace="one"):
                    yield service.snapshotter


@pytest.fixture(scope="module")
def constellation() -> Iterator[Constellation]:
    quiet = '[metadata.gc]\nstartup_delay = "1h"\nschedule_delay = "1h"\n'
    config = f"[services.snapshots.overlayfs]\n[snapshots.overlayfs]\ndurable = false\n{quiet}"
    with Constellation(config=config) as running:
        yield running


@pytest.mark.system
class TestThroughGateway(SnapshotterSuite):
    renames_directories = False
    rebases = True
    layers = 16

    @pytest.fixture
    async def snapshotter(self, constellation: Constellation) -> AsyncIterator[Snapshotter]:
        channel = connect(constellation.address)
        with context.within(namespace="suite"):
            yield RemoteSnapshotter(channel, "overlayfs")
        channel.close()


@pytest.fixture(scope="module")
def plugin() -> Iterator[Plugin]:
    with directory() as base:
        plugin = Plugin(base)
        plugin.start()
        try:
            yield plugin
        finally:
            plugin.close()


@pytest.fixture
async def registry(plugin: Plugin) -> AsyncIterator[Registry]:
    """The metadata service's back ends, with the plugin as one of them."""
    trees = ProxyPlugin(name="trees", type="snapshot", address=plugin.address)
    with directory() as path:
        async with metadata(path, plugins=[trees]) as (_, registry, _, _):
            # The plugin knows what earlier tests made, in their namespaces.
            with context.within(namespace=f"n{uuid.uuid4().hex}"):
                yield registry


@pytest.mark.system
class TestPluginThatHangsAndRestarts(SnapshotterSuite):
    renames_directories = False
    rebases = True
    layers = 16

    @pytest.fixture
    async def snapshotter(self, registry: Registry, plugin: Plugin) -> Snapshotter:
        return Tormenting(registry.snapshotter("trees"), plugin)

    async def test_its_capabilities_are_told_as_they_are_now(self, registry: Registry, plugin: Plugin) -> None:
        """A plugin that another one has taken the place of is not described by its former capabilities."""
        for life in range(2):
            if life:
                await in_thread(plugin.restart)
            async with asyncio.timeout(30):
                while True:
                    (backend,) = [one for one in await registry.list() if one.name == "trees"]
                    if backend.capabilities and ("only-remap-ids" in backend.capabilities) != plugin.slow:
                        break
                    await asyncio.sleep(0.05)
            assert (backend.error, "rebase" in backend.capabilities) == ("", True)
