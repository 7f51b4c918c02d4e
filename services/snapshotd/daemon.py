"""The composition root: opens the snapshotter, serves it, and frees removed snapshots meanwhile.

A snapshotter that can't work on this machine is served all the same, and says why: started again and again, it would
be no better, and nobody could ask it.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from carina.aio.daemon import Lifetime
from carina.aio.threads import in_thread
from carina.errors import NotFound
from carina.introspection import Plugin
from carina.linux.disk import exercise
from carina.linux.privileges import require_own, require_root
from carina.platforms import host
from carina.rpc.readiness import Readiness
from carina.rpc.server import serve as serve_rpc
from carina.snapshots.server import SnapshotsService, only
from snapshotd.config import Config
from snapshotd.drivers import Driver, Unfit
from snapshotd.rpc import IntrospectionService
from snapshotd.snapshotter import LocalSnapshotter, open_snapshotter
from snapshotd.unusable import Unusable

_log = logging.getLogger(__name__)


async def serve(config: Config, lifetime: Lifetime) -> None:
    """Run until the process is asked to end."""
    await in_thread(require_root, f"snapshotd-{config.name}", "make trees of every owner")
    await in_thread(require_own, config.root, f"snapshotd-{config.name}")
    driver = config.make_driver()
    async with contextlib.AsyncExitStack() as stack:
        opened = open_snapshotter(config.root, driver, config.settings)
        snapshotter: LocalSnapshotter | Unusable
        error = ""
        try:
            snapshotter = await stack.enter_async_context(opened)
        except Unfit as unfit:
            error = str(unfit)
            _log.error("snapshotter %s can't be used: %s", config.name, error)
            snapshotter = Unusable(error)
        name = f"snapshotd-{config.name}"
        readiness = Readiness(name, functools.partial(_try, snapshotter, config.root))
        described = IntrospectionService(_describe(config, driver, error), readiness)
        async with serve_rpc(config.address, [SnapshotsService(only(snapshotter)), described], name=name) as listener:
            lifetime.ready()
            await _until_stopped(snapshotter, lifetime, readiness.watch(listener.health))


async def _try(snapshotter: LocalSnapshotter | Unusable, root: Path) -> None:
    """What keeping a snapshot takes: a record that can be read, and a file system that has room and is writable."""
    with contextlib.suppress(NotFound):
        await snapshotter.stat("readiness")
    await in_thread(exercise, root)


def _describe(config: Config, driver: Driver, error: str) -> Plugin:
    return Plugin(
        type="io.containerd.snapshotter.v1",
        id=config.name,
        platforms=(host(),),
        exports={"root": str(config.root)},
        capabilities=() if error else driver.capabilities,
        error=error,
    )


async def _until_stopped(
    snapshotter: LocalSnapshotter | Unusable, lifetime: Lifetime, readiness: Coroutine[Any, Any, None]
) -> None:
    async with asyncio.TaskGroup() as group:
        freeing = group.create_task(snapshotter.run(), name="free-snapshots")
        watching = group.create_task(readiness, name="readiness")
        await lifetime.stopped()
        freeing.cancel()
        watching.cancel()
