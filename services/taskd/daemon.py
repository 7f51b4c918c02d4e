"""The composition root: opens everything in the order in which it depends on the rest."""

import asyncio
import contextlib
import functools
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
from carina.linux.disk import exercise
from carina.linux.privileges import require_own, require_root
from carina.namespaces.client import RemoteNamespaceStore
from carina.rpc.client import Channel, connect
from carina.rpc.metrics import Process
from carina.rpc.readiness import Readiness
from carina.rpc.server import serve as serve_rpc
from carina.sandboxes import SandboxStore
from carina.sandboxes.client import RemoteSandboxStore
from carina.sandboxes.server import ControllersService
from carina.snapshots.client import RemoteSnapshotter
from carina.sqlite import open_database
from carina.sqlite.migrations import migrations
from carina.tasks.server import TasksService
from carina.ttrpc.server import serve as serve_events
from taskd import metrics
from taskd.config import Config
from taskd.controllers import AllControllers
from taskd.delivery import Delivery, Sink
from taskd.endpoints import Endpoints
from taskd.outbox import Outbox
from taskd.reconcile import reconcile
from taskd.registry import Registry
from taskd.restart import RestartMonitor
from taskd.rpc import IntrospectionService, event_handlers
from taskd.sandboxes import Sandboxes
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
    private = ((config.root, 0o700), (config.work, 0o700), (config.sandbox_work, 0o700))
    for directory, mode in (*private, (config.bundles, 0o711), (config.sandboxes, 0o700)):
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
    sandboxes: Sandboxes
    introspection: IntrospectionService
    registry: Registry
    outbox: Outbox

    def give_up_waits(self) -> None:
        self.registry.give_up_waits()
        self.sandboxes.give_up_waits()

    async def measure(self) -> list[Process]:
        return [Process(service="taskd", families=list(metrics.own(self.registry, await self.outbox.pending())))]

    async def measure_containers(self) -> list[Process]:
        return [Process(service="taskd", families=await metrics.containers(self.registry))]


@contextlib.asynccontextmanager
async def opened(
    config: Config,
    containers: ContainerStore,
    events: Sink,
    *,
    store: SandboxStore | None = None,
    plugged: Plugged | None = None,
) -> AsyncIterator[Opened]:
    """Tasks and sandboxes without a socket of their own; only the events of shims come in by one."""
    await in_thread(prepare, config)
    scripts = await in_thread(migrations, "taskd")
    async with open_database(config.root / "outbox.db", scripts) as database:
        outbox = Outbox(database, events, limits=config.events)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(outbox.forward(), name="forward events")
                launcher = Launcher(config=config)
                registry = Registry(config, launcher, outbox, group)
                sandboxes = Sandboxes(config, launcher, outbox, store, group)
                try:
                    # Shims connect to the events' socket when they start, also for `delete`: it comes first.
                    async with serve_events(config.events_socket, event_handlers(registry.record)):
                        await sandboxes.reconcile()
                        await reconcile(registry, outbox)
                        controllers = None if plugged is None else _controllers(config, sandboxes, plugged, outbox)
                        yield Opened(
                            tasks=Tasks(registry, containers, Endpoints(registry, sandboxes, store, controllers)),
                            sandboxes=sandboxes,
                            introspection=IntrospectionService(config, launcher),
                            registry=registry,
                            outbox=outbox,
                        )
                    await outbox.flush(_FLUSH_SECONDS)
                finally:
                    await sandboxes.close()
                    await registry.close()
                raise _Stop
        except* _Stop:
            log.info("stopped; shims and containers go on")


def _controllers(config: Config, own: Sandboxes, plugged: Plugged, outbox: Outbox) -> AllControllers:
    return AllControllers(own, plugged, outbox, call_seconds=config.call_seconds, work_seconds=config.create_seconds)


def _monitor(config: Config, tasks: Tasks, channel: Channel) -> RestartMonitor:
    return RestartMonitor(
        tasks,
        RemoteContainerStore(channel),
        RemoteNamespaceStore(channel),
        lambda name: RemoteSnapshotter(channel, name),
        interval=config.restart_interval_seconds,
        tenants=config.tenants,
    )


async def _try(config: Config, own: Opened) -> None:
    """What running a container takes: the outbox, and room for its events and for bundles."""
    await own.outbox.pending()
    for directory in (config.root, config.bundles):
        await in_thread(exercise, directory)


async def serve(config: Config, lifetime: Lifetime) -> None:
    """Serve until the process is asked to end. Shims and containers go on."""
    await in_thread(require_root, "taskd", "run containers")
    await in_thread(require_own, config.root, "taskd")
    channel = connect(config.metadata)
    plugged = Plugged(RemoteBackendRegistry(channel), "sandbox")
    try:
        delivery = Delivery(RemoteEventLog(channel), RemoteEventService(channel))
        store = RemoteSandboxStore(channel)
        async with opened(config, RemoteContainerStore(channel), delivery, store=store, plugged=plugged) as own:
            controllers = _controllers(config, own.sandboxes, plugged, own.outbox)
            handlers = [TasksService(own.tasks), ControllersService(controllers), own.introspection]
            async with (
                asyncio.TaskGroup() as group,
                serve_rpc(config.address, handlers, name="taskd") as listener,
            ):
                listener.metrics.sources += [own.measure, own.measure_containers]
                readiness = Readiness("taskd", functools.partial(_try, config, own))
                background = (
                    group.create_task(_monitor(config, own.tasks, channel).run(), name="restart monitor"),
                    group.create_task(readiness.watch(listener.health), name="readiness"),
                )
                lifetime.ready()
                await lifetime.stopped()
                for task in background:
                    task.cancel()
                own.give_up_waits()
    finally:
        plugged.close()
        channel.close()
