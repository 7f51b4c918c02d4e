"""The composition root: opens the database, builds the stores on it, serves them until the process is to end."""

import os
from pathlib import Path
from typing import Any

from carina.aio.daemon import Lifetime
from carina.aio.threads import in_thread
from carina.config import socket_path
from carina.containers.server import ContainersService
from carina.events.server import EventsService
from carina.images.server import ImagesService
from carina.introspection.server import IntrospectionService
from carina.leases.server import LeasesService
from carina.namespaces.server import NamespacesService
from carina.rpc.server import serve as serve_rpc
from carina.sandboxes.server import SandboxesService
from carina.sqlite import open_database
from metadatad import rpc
from metadatad.config import Config
from metadatad.containers import Containers
from metadatad.events import Events, Exchange
from metadatad.images import Images
from metadatad.leases import Leases
from metadatad.namespaces import Namespaces
from metadatad.plugins import Plugins
from metadatad.records import Records
from metadatad.sandboxes import Sandboxes


async def serve(config: Config, lifetime: Lifetime) -> None:
    """Run until the process is asked to end."""
    await in_thread(_make_directories, config.root, socket_path(config.address).parent)
    exchange = Exchange(rpc.event_field, max_waiting=config.events_waiting)
    async with open_database(config.database, "metadatad") as database:
        records = Records(database, deliver=exchange.deliver, keep_events=config.events_kept)
        handlers = record_handlers(records, exchange)
        handlers.append(IntrospectionService(Plugins(database=config.database)))
        async with serve_rpc(config.address, handlers, name="metadatad"):
            lifetime.ready()
            await lifetime.stopped()
            exchange.close()


def record_handlers(records: Records, exchange: Exchange) -> list[Any]:
    """The services that need nothing but the database."""
    return [
        NamespacesService(Namespaces(records)),
        LeasesService(Leases(records)),
        ImagesService(Images(records)),
        ContainersService(Containers(records)),
        SandboxesService(Sandboxes(records)),
        EventsService(Events(records, exchange)),
    ]


def _make_directories(root: Path, state: Path) -> None:
    """`root` for root alone; sockets are reached through `state`."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(root, 0o700)
    state.mkdir(mode=0o711, parents=True, exist_ok=True)
