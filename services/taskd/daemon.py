"""The composition root: opens everything in the order in which it depends on the rest."""

import asyncio
import logging
import resource
import sys

from carina.aio.daemon import Lifetime
from carina.aio.threads import in_thread
from carina.containers.client import RemoteContainerStore
from carina.events.client import RemoteEventService
from carina.rpc.client import connect
from carina.rpc.server import serve as serve_rpc
from carina.sqlite import open_database
from carina.sqlite.migrations import migrations
from carina.tasks.server import TasksService
from carina.ttrpc.server import serve as serve_ttrpc
from taskd.config import Config
from taskd.outbox import Outbox
from taskd.reconcile import reconcile
from taskd.registry import Registry
from taskd.rpc import IntrospectionService, event_handlers
from taskd.shim import Launcher
from taskd.tasks import Tasks

_FLUSH_SECONDS = 2.0

log = logging.getLogger(__name__)


class _Stop(Exception):
    """Ends the background work."""


def prepare(config: Config) -> None:
    """Make the directories and the publishing program; tighten what is too wide."""
    for directory, mode in ((config.root, 0o700), (config.work, 0o700), (config.state, 0o711), (config.bundles, 0o711)):
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
        directory.chmod(mode)
    temporary = config.publisher.with_suffix(".new")
    temporary.write_text(f"#!{sys.executable}\nfrom taskd.publish import main\n\nmain()\n")
    temporary.chmod(0o700)
    temporary.rename(config.publisher)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def serve(config: Config, lifetime: Lifetime) -> None:
    """Serve until the process is asked to end. Shims and containers go on."""
    await in_thread(prepare, config)
    channel = connect(config.metadata)
    try:
        async with open_database(config.root / "outbox.db", migrations("taskd")) as database:
            outbox = Outbox(database, RemoteEventService(channel))
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(outbox.forward(), name="forward events")
                    launcher = Launcher(config=config)
                    registry = Registry(config, launcher, outbox, group)
                    tasks = Tasks(registry, RemoteContainerStore(channel))
                    handlers = [TasksService(tasks), IntrospectionService(config, launcher)]
                    # Shims connect to the events' socket when they start, also for `delete`: it comes first.
                    async with serve_ttrpc(config.events_socket, event_handlers(registry.record)):
                        await reconcile(registry, outbox)
                        async with serve_rpc(config.address, handlers, name="taskd"):
                            lifetime.ready()
                            await lifetime.stopped()
                            registry.give_up_waits()
                    await outbox.flush(_FLUSH_SECONDS)
                    registry.close()
                    raise _Stop
            except* _Stop:
                log.info("stopped; shims and containers go on")
    finally:
        channel.close()
