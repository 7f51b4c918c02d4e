"""Light calls to every service, again and again: how long each is away, and how long calls take meanwhile."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from carina import context
from carina.containers.client import RemoteContainerStore
from carina.content.client import RemoteContentStore
from carina.digest import Digest
from carina.errors import CarinaError, NotFound
from carina.namespaces.client import RemoteNamespaceStore
from carina.rpc.client import Channel, connect
from carina.snapshots.client import RemoteSnapshotter
from carina.tasks.client import RemoteTaskService
from support.storm.peers import Ours, Peer

PAUSE: Final = 0.05
LIMIT: Final = 5.0
NOTHING: Final = Digest("sha256:" + "0" * 64)


@dataclass
class Service:
    """What was seen of one service in one round."""

    milliseconds: dict[int, int] = field(default_factory=dict)
    """Upper bound in powers of two -> calls that were answered within."""
    slowest: float = 0.0
    away: float = 0.0
    """Longest time in seconds from the last answer before a failure to the next answer."""


@dataclass
class Probes:
    seen: dict[str, Service] = field(default_factory=dict)

    async def _watch(self, name: str, call: Callable[[], Coroutine[Any, Any, object]]) -> None:
        service = self.seen.setdefault(name, Service())
        answered = time.monotonic()
        failed = False
        while True:
            begun = time.monotonic()
            try:
                with context.deadline(LIMIT), contextlib.suppress(NotFound):
                    await call()
            except CarinaError:
                failed = True
            else:
                now = time.monotonic()
                took = now - begun
                if failed:
                    service.away = max(service.away, now - answered)
                else:
                    bound = 1 << max(0, int(took * 1000)).bit_length()
                    service.milliseconds[bound] = service.milliseconds.get(bound, 0) + 1
                    service.slowest = max(service.slowest, took)
                answered, failed = now, False
            await asyncio.sleep(PAUSE)


def _calls(peer: Peer, channels: dict[str, Channel]) -> dict[str, Callable[[], Coroutine[Any, Any, object]]]:
    if not isinstance(peer, Ours):
        return {"containerd": lambda: RemoteContainerStore(channels["containerd"]).get("nothing")}
    return {
        "contentd": lambda: RemoteContentStore(channels["contentd"]).info(NOTHING),
        "snapshotd-overlayfs": lambda: RemoteSnapshotter(channels["snapshotd-overlayfs"], "overlayfs").stat("nothing"),
        "metadatad": lambda: RemoteNamespaceStore(channels["metadatad"]).get("nothing"),
        "taskd": lambda: RemoteTaskService(channels["taskd"]).get("nothing"),
        "gatewayd": lambda: RemoteContainerStore(channels["carina"]).get("nothing"),
    }


@contextlib.asynccontextmanager
async def probes(peer: Peer) -> AsyncIterator[Probes]:
    """Watch directly at each socket for the time of the block, so that only what a service does itself counts."""
    made = Probes()
    names = ("contentd", "snapshotd-overlayfs", "metadatad", "taskd", "carina") if isinstance(peer, Ours) else ()
    channels = {name: connect(f"unix://{peer.state}/{name}.sock") for name in names}
    channels = channels or {"containerd": connect(f"unix://{peer.socket}")}
    tasks = []
    try:
        with context.within(namespace=peer.namespaces[0]):
            async with asyncio.TaskGroup() as group:
                for name, call in _calls(peer, channels).items():
                    tasks.append(group.create_task(made._watch(name, call), name=f"probe {name}"))
                try:
                    yield made
                finally:
                    for task in tasks:
                        task.cancel()
    finally:
        for channel in channels.values():
            channel.close()
