"""The composition root: opens everything in the order in which it depends on the rest."""

import asyncio
import contextlib
import logging
import resource
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from carina.aio.daemon import Lifetime
from carina.aio.threads import in_thread
from carina.backends.client import RemoteBackendRegistry
from carina.backends.plugged import Plugged
from carina.containers import ContainerStore
from carina.containers.client import RemoteContainerStore
from carina.events.client import RemoteEventLog, RemoteEventService
from carina.linux.privileges import require_own, require_root
from carina.rpc.client import connect
from carina.rpc.server import serve as serve_rpc
from carina.sandboxes.server import ControllersService
from carina.sqlite import open_database
from carina.sqlite.migrations import migrations
from carina.tasks.server import TasksService
from carina.ttrpc.server import serve as serve_events
from taskd.config import Config
from taskd.controllers import PluggedControllers
from taskd.delivery import Delivery, Sink
from taskd.outbox import Outbox
from taskd.reconcile import reconcile
from taskd.registry import Registry
from taskd.rpc import IntrospectionService, event_handlers
from taskd.shim import Launcher
from taskd.tasks import Tasks

_FLUSH_SECONDS: Final = 1.0
_STATE_MODE: Final = 0o3771
"""The widest that the state directory may be: nobody but its owner and its group lists it or makes files in it."""

log = logging.getLogger(__name__)


class _Stop(Exception):
    """Ends the background work."""


def prepare(config: Config) -> None:
    """Make the directories and the publishing program; tighten what is too wide."""
    for directory, mode in ((config.root, 0o700), (config.work, 0o700), (config.bundles, 0o711)):
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
        directory.chmod(mode)
    config.state.mkdir(mode=0o711, parents=True, exist_ok=True)
    # Where the services are users of their own, a group of theirs may make sockets in it: that is left.
    config.state.chmod(config.state.stat().st_mode & _STATE_MODE | 0o711)
    temporary = config.publisher.with_suffix(".new")
    temporary.write_text(f"#!{sys.executable}\nfrom taskd.publish import main\n\nmain()\n")
    temporary.chmod(0o700)
    temporary.rename(config.publisher)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    tasks: Tasks
    introspection: IntrospectionService
    registry: Registry


@contextlib.asynccontextmanager
async def opened(config: Config, containers: ContainerStore, events: Sink) -> AsyncIterator[Opened]:
    """Tasks without a socket of their own; only the events of shims come in by one."""
    await in_thread(prepare, config)
    scripts = await in_thread(migrations, "taskd")
    async with open_database(config.root / "outbox.db", scripts) as database:
        outbox = Outbox(database, events, limits=config.events)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(outbox.forward(), name="forward events")
                launcher = Launcher(config=config)
                registry = Registry(config, launcher, outbox, group)
                try:
                    # Shims connect to the events' socket when they start, also for `delete`: it comes first.
                    async with serve_events(config.events_socket, event_handlers(registry.record)):
                        await reconcile(registry, outbox)
                        yield Opened(
                            tasks=Tasks(registry, containers),
                            introspection=IntrospectionService(config, launcher),
                            registry=registry,
                        )
                    await outbox.flush(_FLUSH_SECONDS)
                finally:
                    await registry.close()
                raise _Stop
        except* _Stop:
            log.info("stopped; shims and containers go on")


async def serve(config: Config, lifetime: Lifetime) -> None:
    """Serve until the process is asked to end. Shims and containers go on."""
    await in_thread(require_root, "taskd", "run containers")
    await in_thread(require_own, config.root, "taskd")
    channel = connect(config.metadata)
    plugged = Plugged(RemoteBackendRegistry(channel), "sandbox")
    try:
        delivery = Delivery(RemoteEventLog(channel), RemoteEventService(channel))
        controllers = PluggedControllers(plugged, call_seconds=config.call_seconds, work_seconds=config.create_seconds)
        async with opened(config, RemoteContainerStore(channel), delivery) as own:
            handlers = [TasksService(own.tasks), ControllersService(controllers), own.introspection]
            async with serve_rpc(config.address, handlers, name="taskd"):
                lifetime.ready()
                await lifetime.stopped()
                own.registry.give_up_waits()
    finally:
        plugged.close()
        channel.close()
