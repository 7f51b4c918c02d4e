"""The composition root: opens the snapshotter, serves it, and frees removed snapshots meanwhile."""

import asyncio

from carina.aio.daemon import Lifetime
from carina.introspection import Plugin
from carina.platforms import host
from carina.rpc.server import serve as serve_rpc
from carina.snapshots.server import SnapshotsService, only
from snapshotd.config import Config
from snapshotd.rpc import IntrospectionService
from snapshotd.snapshotter import LocalSnapshotter, open_snapshotter


async def serve(config: Config, lifetime: Lifetime) -> None:
    """Run until the process is asked to end."""
    driver = config.make_driver()
    plugin = Plugin(
        type="io.containerd.snapshotter.v1",
        id=config.name,
        platforms=(host(),),
        exports={"root": str(config.root)},
        capabilities=driver.capabilities,
    )
    async with open_snapshotter(config.root, driver, config.settings) as snapshotter:
        handlers = [SnapshotsService(only(snapshotter)), IntrospectionService(plugin)]
        async with serve_rpc(config.address, handlers, name=f"snapshotd-{config.name}"):
            lifetime.ready()
            await _until_stopped(snapshotter, lifetime)


async def _until_stopped(snapshotter: LocalSnapshotter, lifetime: Lifetime) -> None:
    async with asyncio.TaskGroup() as group:
        freeing = group.create_task(snapshotter.run(), name="free-snapshots")
        await lifetime.stopped()
        freeing.cancel()
