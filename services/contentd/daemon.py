"""The composition root: opens the store, serves it, and removes forgotten ingests meanwhile."""

import asyncio
import contextlib
import functools
import logging
from pathlib import Path
from typing import Any, Final

from carina.aio.daemon import Lifetime
from carina.aio.threads import in_thread
from carina.content.server import ContentService, LaneService
from carina.errors import CarinaError, NotFound
from carina.integrity.server import IntegrityService
from carina.introspection import Plugin
from carina.linux.disk import exercise
from carina.linux.privileges import require_own
from carina.rpc.lane import LaneServer
from carina.rpc.readiness import Readiness
from carina.rpc.server import serve as serve_rpc
from contentd.config import Config
from contentd.rpc import IntrospectionService
from contentd.store import LocalContentStore

log = logging.getLogger(__name__)

EXPIRE_SECONDS: Final = 3600.0


async def serve(config: Config, lifetime: Lifetime) -> None:
    """Run until the process is asked to end."""
    await in_thread(require_own, config.root, "contentd")
    plugin = Plugin(type="io.containerd.content.v1", id="content", exports={"root": str(config.root)})
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(LocalContentStore(config.root, expire=config.expire_ingests))
        readiness = Readiness("contentd", functools.partial(_try, store, config.root))
        handlers: list[Any] = [ContentService(store), IntegrityService(store), IntrospectionService(plugin, readiness)]
        if config.lane is not None:
            lane = await stack.enter_async_context(LaneServer(config.lane))
            handlers.append(LaneService(store, lane))
        listener = await stack.enter_async_context(serve_rpc(config.address, handlers, name="contentd"))
        lifetime.ready()
        async with asyncio.TaskGroup() as group:
            expiring = group.create_task(_expire(store), name="expire-ingests")
            watching = group.create_task(readiness.watch(listener.health), name="readiness")
            await lifetime.stopped()
            expiring.cancel()
            watching.cancel()


async def _try(store: LocalContentStore, root: Path) -> None:
    """What keeping a blob takes: room, a file system that is writable, and an answer about what is there."""
    await in_thread(exercise, root)
    with contextlib.suppress(NotFound):
        await store.status("readiness")


async def _expire(store: LocalContentStore) -> None:
    while True:
        await asyncio.sleep(EXPIRE_SECONDS)
        try:
            await store.expire()
        except CarinaError as error:
            log.warning("forgotten ingests could not be removed: %s", error)
