"""The metadata service's views on real back ends, all in this process and all behind real sockets."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from carina.backends.client import RemoteBackendRegistry
from carina.config import Config, ProxyPlugin
from carina.content.client import RemoteContentStore
from carina.content.server import ContentService, LaneService
from carina.digest import Digest
from carina.gc.client import RemoteCollector, RemoteExplainer
from carina.images.client import RemoteImageStore
from carina.integrity.server import IntegrityService
from carina.leases.client import RemoteLeaseManager
from carina.namespaces.client import RemoteNamespaceStore
from carina.rpc.client import connect
from carina.rpc.lane import LaneServer
from carina.rpc.server import serve
from carina.snapshots.client import RemoteSnapshotter
from carina.snapshots.server import SnapshotsService, only
from carina.sqlite import open_database
from contentd.store import LocalContentStore
from metadatad import rpc
from metadatad.backends import Registry, Settings, open_registry
from metadatad.collector import Collector, Schedule
from metadatad.daemon import backend_handlers, record_handlers
from metadatad.exchange import open_exchange
from metadatad.records import Records
from snapshotd.drivers import Driver
from snapshotd.native import Native
from snapshotd.snapshotter import LocalSnapshotter, open_snapshotter
from snapshotd.snapshotter import Settings as SnapshotterSettings

ON_DEMAND = Schedule(startup_delay=1e8, schedule_delay=1e8)
"""Collections happen only where a test asks for one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """The service as its clients see it, and what is behind it."""

    path: Path
    address: str
    content: RemoteContentStore
    snapshotter: RemoteSnapshotter
    images: RemoteImageStore
    leases: RemoteLeaseManager
    namespaces: RemoteNamespaceStore
    collector: RemoteCollector
    explainer: RemoteExplainer
    backends: RemoteBackendRegistry
    registry: Registry
    records: Records
    blobs: LocalContentStore
    trees: LocalSnapshotter

    async def stored(self) -> set[Digest]:
        """Digests that the back end has."""
        return {info.digest async for info in self.blobs.walk()}

    async def trees_there(self) -> set[str]:
        """Keys that the back end has."""
        return {info.name async for info in self.trees.walk()}

    async def rows(self, table: str) -> int:
        return int(await self.records.read(lambda c: c.execute(f"SELECT count(*) FROM {table}").fetchone()[0]))


@contextlib.asynccontextmanager
async def content_backend(path: Path) -> AsyncIterator[LocalContentStore]:
    async with LocalContentStore(path / "contentd") as store:
        async with LaneServer(path / "c.fd.sock") as lane:
            handlers = [ContentService(store), IntegrityService(store), LaneService(store, lane)]
            async with serve(f"unix://{path}/c.sock", handlers, name="contentd", grace=1.0):
                yield store


@contextlib.asynccontextmanager
async def snapshot_backend(
    path: Path, name: str = "native", driver: Driver | None = None
) -> AsyncIterator[LocalSnapshotter]:
    async with open_snapshotter(path / name, driver or Native(), SnapshotterSettings(durable=False)) as snapshotter:
        freeing = asyncio.create_task(snapshotter.run())
        try:
            handlers = [SnapshotsService(only(snapshotter))]
            async with serve(f"unix://{path}/{name}.sock", handlers, name=f"snapshotd-{name}", grace=1.0):
                yield snapshotter
        finally:
            freeing.cancel()
            await asyncio.wait([freeing])


@contextlib.asynccontextmanager
async def metadata(
    path: Path,
    *,
    shared: bool = True,
    schedule: Schedule = ON_DEMAND,
    settings: Settings | None = None,
    plugins: Sequence[ProxyPlugin] = (),
) -> AsyncIterator[tuple[str, Registry, Records, Collector]]:
    """The metadata service on the back ends of `path`, without those themselves."""
    config = Config(
        services={"content": f"unix://{path}/c.sock", "snapshots.native": f"unix://{path}/native.sock"},
        proxy_plugins={plugin.name: plugin for plugin in plugins},
    )
    settings = dataclasses.replace(settings or Settings(answer_seconds=5, work_seconds=20), shared=shared)
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(path / "metadata.sqlite", "metadatad"))
        exchange = await open_exchange(database, rpc.event_field)
        records = Records(database, deliver=exchange.deliver)
        registry = await stack.enter_async_context(open_registry(records, config, settings))
        collector = Collector(records, registry, schedule=schedule, changed=registry.content.changed)
        records.attach(collector)
        async with asyncio.TaskGroup() as tasks:
            working = [tasks.create_task(collector.serve()), tasks.create_task(registry.serve())]
            try:
                handlers = record_handlers(records, exchange) + backend_handlers(records, registry, collector)
                async with serve(f"unix://{path}/m.sock", handlers, name="metadatad", grace=1.0):
                    yield f"unix://{path}/m.sock", registry, records, collector
            finally:
                for task in working:
                    task.cancel()


@contextlib.asynccontextmanager
async def view(
    path: Path, *, shared: bool = True, schedule: Schedule = ON_DEMAND, driver: Driver | None = None
) -> AsyncIterator[View]:
    """Everything, for clients. The one snapshotter is called `native`, whatever its driver."""
    async with contextlib.AsyncExitStack() as stack:
        blobs = await stack.enter_async_context(content_backend(path))
        trees = await stack.enter_async_context(snapshot_backend(path, driver=driver))
        address, registry, records, _ = await stack.enter_async_context(
            metadata(path, shared=shared, schedule=schedule)
        )
        channel = connect(address)
        stack.callback(channel.close)
        yield View(
            path=path,
            address=address,
            content=RemoteContentStore(channel),
            snapshotter=RemoteSnapshotter(channel, "native"),
            images=RemoteImageStore(channel),
            leases=RemoteLeaseManager(channel),
            namespaces=RemoteNamespaceStore(channel),
            collector=RemoteCollector(channel),
            explainer=RemoteExplainer(channel),
            backends=RemoteBackendRegistry(channel),
            registry=registry,
            records=records,
            blobs=blobs,
            trees=trees,
        )
