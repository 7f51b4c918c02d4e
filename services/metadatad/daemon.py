"""The composition root: opens the database, builds the stores on it, serves them until the process is to end."""

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from carina.aio.daemon import Lifetime
from carina.aio.threads import in_thread
from carina.backends.server import PluginsService
from carina.backup.server import BackupService
from carina.check.server import CheckService
from carina.config import Config as Constellation
from carina.config import load, socket_path
from carina.containers.server import ContainersService
from carina.content.server import ContentService
from carina.errors import CarinaError, DataLoss
from carina.events.server import EventsService, LogService
from carina.gc.server import GCService
from carina.images.server import ImagesService
from carina.introspection.server import IntrospectionService
from carina.lane.server import TokenLaneService
from carina.leases.server import LeasesService
from carina.linux.disk import exercise
from carina.linux.errnos import translated
from carina.linux.privileges import require_own
from carina.namespaces.server import NamespacesService
from carina.rpc.readiness import Readiness
from carina.rpc.server import Listener
from carina.rpc.server import serve as serve_rpc
from carina.sandboxes.server import SandboxesService
from carina.snapshots.server import SnapshotsService
from carina.sqlite import Database, open_database
from carina.swap.server import SwapService
from metadatad import backup, rpc
from metadatad.backends import Registry, open_registry
from metadatad.backup import DatabaseBackup
from metadatad.check import Check
from metadatad.collector import Collector
from metadatad.config import Config, read
from metadatad.containers import Containers
from metadatad.events import Events
from metadatad.exchange import Exchange, open_exchange
from metadatad.explainer import Explainer
from metadatad.images import Images
from metadatad.leases import Leases
from metadatad.metrics import Sources
from metadatad.namespaces import Namespaces
from metadatad.plugins import Plugins
from metadatad.records import Records
from metadatad.sandboxes import Sandboxes

log = logging.getLogger(__name__)


async def serve(config: Config, lifetime: Lifetime) -> None:
    """Run until the process is asked to end."""
    await in_thread(require_own, config.root, "metadatad")
    await in_thread(_make_directories, config.root, socket_path(config.address).parent)
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(_opened(config.database))
        exchange = await open_exchange(database, rpc.event_field)
        records = Records(database, deliver=exchange.deliver, limits=config.events)
        registry = await stack.enter_async_context(open_registry(records, config.constellation, config.backends))
        registry.reread = functools.partial(_reread, config.constellation)
        collector = Collector(records, registry, schedule=config.gc, changed=registry.content.changed)
        records.attach(collector)
        handlers = record_handlers(records, exchange) + backend_handlers(records, registry, collector)
        plugins = Plugins(database=config.database, registry=registry, shared=config.backends.shared)
        handlers.append(IntrospectionService(plugins))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        working = [
            tasks.create_task(collector.serve(), name="collector"),
            tasks.create_task(registry.serve(), name="back ends"),
            tasks.create_task(_reloading(registry, lifetime), name="reload"),
        ]
        async with serve_rpc(config.address, handlers, name="metadatad") as listener:
            sources = Sources(records, collector, registry)
            listener.metrics.sources += [sources.own, sources.behind]
            readiness = Readiness("metadatad", functools.partial(_try, records, config.root))
            working.append(tasks.create_task(readiness.watch(listener.health), name="readiness"))
            registry.on_health = functools.partial(_health, listener, collector)
            for backend in await registry.list():
                _health(listener, collector, backend.name, not backend.error)
            lifetime.ready()
            await lifetime.stopped()
            exchange.close()
        for task in working:
            task.cancel()


def record_handlers(records: Records, exchange: Exchange) -> list[Any]:
    """The services that need nothing but the database."""
    events = Events(records, exchange)
    return [
        NamespacesService(Namespaces(records)),
        LeasesService(Leases(records)),
        ImagesService(Images(records)),
        ContainersService(Containers(records)),
        SandboxesService(Sandboxes(records)),
        EventsService(events),
        LogService(events),
    ]


def backend_handlers(records: Records, registry: Registry, collector: Collector) -> list[Any]:
    """The services that work on back ends."""
    return [
        ContentService(registry.content),
        TokenLaneService(registry.content),
        SnapshotsService(registry.gated),
        PluginsService(registry),
        SwapService(registry.mover),
        BackupService(DatabaseBackup(records.database.path)),
        CheckService(Check(records, registry)),
        GCService(collector, Explainer(records, registry.gated)),
    ]


@contextlib.asynccontextmanager
async def _opened(path: Path) -> AsyncIterator[Database]:
    """Whoever finds the database damaged is told how to go on."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            database = await stack.enter_async_context(open_database(path, "metadatad"))
        except DataLoss as error:
            raise DataLoss(
                f"{error}: nothing was changed; go on with `carina metadata restore FILE`, from a backup, "
                "or `carina metadata rebuild`, from the stores"
            ) from error
        await in_thread(backup.remove_leftovers, path)
        yield database


async def _reloading(registry: Registry, lifetime: Lifetime) -> None:
    """Take the configuration over whenever SIGHUP asks for it, until cancelled."""
    while True:
        await lifetime.asked_to_reload()
        try:
            reloaded = await registry.reload()
        except CarinaError as error:
            log.error("the configuration stays as it was: %s", error)
            continue
        for line in (*reloaded.changes, *reloaded.later):
            log.info("%s", line)
        log.info("the configuration was read again: %d changes", len(reloaded.changes))


def _reread(before: Constellation) -> Constellation:
    """The configuration as the file has it now, if this service could be started with it."""
    found = load(before.path, root=before.root, state=before.state)
    read(found)
    return found


async def _try(records: Records, root: Path) -> None:
    """What every call takes: a record that is read, and a file system that has room and is writable."""
    await records.read(lambda connection: connection.execute("SELECT name FROM namespaces LIMIT 1").fetchone())
    await in_thread(exercise, root)


def _health(listener: Listener, collector: Collector, name: str, serving: bool | None) -> None:
    listener.health.set(name, serving)
    if serving:  # what could not be removed while it was away can be now
        collector.mutated(deletion=True)


def _make_directories(root: Path, state: Path) -> None:
    """`root` for root alone; sockets are reached through `state`."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(root, 0o700)
        state.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise translated(error, f"preparing {error.filename or root}") from error
