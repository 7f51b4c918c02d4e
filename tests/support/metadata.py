"""The metadata service's stores on a real database, direct or behind a real socket."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from carina.containers import ContainerStore
from carina.containers.client import RemoteContainerStore
from carina.containers.server import ContainersService
from carina.events import EventService
from carina.events.client import RemoteEventService
from carina.events.server import EventsService
from carina.images import ImageStore
from carina.images.client import RemoteImageStore
from carina.images.server import ImagesService
from carina.leases import LeaseManager
from carina.leases.client import RemoteLeaseManager
from carina.leases.server import LeasesService
from carina.namespaces import NamespaceStore
from carina.namespaces.client import RemoteNamespaceStore
from carina.namespaces.server import NamespacesService
from carina.rpc.client import connect
from carina.rpc.server import serve
from carina.sandboxes import SandboxStore
from carina.sandboxes.client import RemoteSandboxStore
from carina.sandboxes.server import SandboxesService
from carina.sqlite import open_database
from metadatad import rpc
from metadatad.containers import Containers
from metadatad.events import Events, Exchange
from metadatad.images import Images
from metadatad.leases import Leases
from metadatad.namespaces import Namespaces
from metadatad.records import Records
from metadatad.sandboxes import Sandboxes


class CountingCollector:
    """Counts what the stores ask of the collector."""

    def __init__(self) -> None:
        self.changes = 0
        self.deletions = 0
        self.collections = 0

    def mutated(self, *, deletion: bool) -> None:
        self.changes += 1
        self.deletions += deletion

    async def collect(self) -> None:
        self.collections += 1


@dataclass(frozen=True, kw_only=True)
class Stores:
    namespaces: NamespaceStore
    leases: LeaseManager
    images: ImageStore
    containers: ContainerStore
    sandboxes: SandboxStore
    events: EventService
    records: Records
    collector: CountingCollector


@contextlib.asynccontextmanager
async def stores(directory: Path, kind: str, *, max_waiting: int = 1000) -> AsyncIterator[Stores]:
    """Every record store on a fresh database; `kind` is `local` or `socket`."""
    exchange = Exchange(rpc.event_field, max_waiting=max_waiting)
    async with open_database(directory / "metadata.sqlite", "metadatad") as database:
        records = Records(database, deliver=exchange.deliver)
        collector = CountingCollector()
        records.attach(collector)
        local = Stores(
            namespaces=Namespaces(records),
            leases=Leases(records),
            images=Images(records),
            containers=Containers(records),
            sandboxes=Sandboxes(records),
            events=Events(records, exchange),
            records=records,
            collector=collector,
        )
        if kind == "local":
            yield local
        else:
            async with _remote(directory, local) as remote:
                yield remote


@contextlib.asynccontextmanager
async def _remote(directory: Path, local: Stores) -> AsyncIterator[Stores]:
    address = f"unix://{directory / 'metadatad.sock'}"
    handlers = [
        NamespacesService(local.namespaces),
        LeasesService(local.leases),
        ImagesService(local.images),
        ContainersService(local.containers),
        SandboxesService(local.sandboxes),
        EventsService(local.events),
    ]
    async with serve(address, handlers, name="metadatad"):
        channel = connect(address)
        try:
            yield Stores(
                namespaces=RemoteNamespaceStore(channel),
                leases=RemoteLeaseManager(channel),
                images=RemoteImageStore(channel),
                containers=RemoteContainerStore(channel),
                sandboxes=RemoteSandboxStore(channel),
                events=RemoteEventService(channel),
                records=local.records,
                collector=local.collector,
            )
        finally:
            channel.close()
