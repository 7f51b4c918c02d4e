"""The metadata service's stores on a real database, direct or behind a real socket."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carina.containers import ContainerStore
from carina.containers.client import RemoteContainerStore
from carina.containers.server import ContainersService
from carina.events import EventLog, EventService
from carina.events.client import RemoteEventLog, RemoteEventService
from carina.events.server import EventsService, LogService
from carina.images import ImageStore
from carina.images.client import RemoteImageStore
from carina.images.server import ImagesService
from carina.leases import LeaseManager
from carina.leases.client import RemoteLeaseManager
from carina.leases.server import LeasesService
from carina.namespaces import NamespaceStore
from carina.namespaces.client import RemoteNamespaceStore
from carina.namespaces.server import NamespacesService
from carina.rpc.client import Channel, connect
from carina.rpc.server import serve
from carina.sandboxes import SandboxStore
from carina.sandboxes.client import RemoteSandboxStore
from carina.sandboxes.server import SandboxesService
from carina.sqlite import open_database
from metadatad import rpc
from metadatad.containers import Containers
from metadatad.eventlog import Limits
from metadatad.events import Events
from metadatad.exchange import open_exchange
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
class Services:
    """The record stores of any implementation."""

    namespaces: NamespaceStore
    leases: LeaseManager
    images: ImageStore
    containers: ContainerStore
    sandboxes: SandboxStore
    events: EventService


@dataclass(frozen=True, kw_only=True)
class Stores(Services):
    """Ours, with what is behind them."""

    log: EventLog
    records: Records
    collector: CountingCollector


def services(channel: Channel) -> Services:
    """The record stores at the other end of a channel."""
    return Services(**_clients(channel))


def _clients(channel: Channel) -> dict[str, Any]:
    return {
        "namespaces": RemoteNamespaceStore(channel),
        "leases": RemoteLeaseManager(channel),
        "images": RemoteImageStore(channel),
        "containers": RemoteContainerStore(channel),
        "sandboxes": RemoteSandboxStore(channel),
        "events": RemoteEventService(channel),
    }


@contextlib.asynccontextmanager
async def stores(directory: Path, kind: str, *, limits: Limits | None = None) -> AsyncIterator[Stores]:
    """Every record store on a fresh database; `kind` is `local` or `socket`."""
    async with open_database(directory / "metadata.sqlite", "metadatad") as database:
        exchange = await open_exchange(database, rpc.event_field)
        records = Records(database, deliver=exchange.deliver, limits=limits)
        collector = CountingCollector()
        records.attach(collector)
        events = Events(records, exchange)
        local = Stores(
            namespaces=Namespaces(records),
            leases=Leases(records),
            images=Images(records),
            containers=Containers(records),
            sandboxes=Sandboxes(records),
            events=events,
            log=events,
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
        LogService(local.log),
    ]
    async with serve(address, handlers, name="metadatad"):
        channel = connect(address)
        try:
            yield Stores(
                **_clients(channel), log=RemoteEventLog(channel), records=local.records, collector=local.collector
            )
        finally:
            channel.close()
