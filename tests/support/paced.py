"""Calls at a steady rate through a gateway, from Google's own client, and what became of each."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

from carina.api.containerd.services.containers.v1 import ListContainersRequest
from carina.api.containerd.services.content.v1 import ReadContentRequest
from carina.api.containerd.services.snapshots.v1 import MountsRequest
from carina.api.containerd.services.tasks.v1 import ListTasksRequest
from carina.api.containerd.services.transfer.v1 import TransferRequest
from carina.rpc.codec import encode
from support.constellation import Constellation

SECONDS: Final = 20.0
"""For a call."""
_BLOB: Final = b"read again and again " * 5000
"""Larger than what metadatad keeps in memory."""
RECONNECT: Final = (
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 50),
)
"""A client that comes back at once: what is measured is the service, and not the patience of its client."""


def reaching(constellation: Constellation) -> dict[str, tuple[str, bytes]]:
    """Service -> a call that nobody but it can answer, as path and request. Makes a blob and a snapshot for them."""
    digest = f"sha256:{hashlib.sha256(_BLOB).hexdigest()}"
    for _ in range(20):  # `ctr` ingests without a lease: a collection may come before the label
        constellation.ctr("content", "ingest", "paced", stdin=_BLOB)
        if constellation.ctr("content", "label", digest, "containerd.io/gc.root=1", check=False).status == 0:
            break
    constellation.ctr("snapshots", "--snapshotter", "native", "prepare", "paced")
    services = "/containerd.services."
    return {
        "gatewayd": (f"{services}version.v1.Version/Version", b""),
        "metadatad": (f"{services}containers.v1.Containers/List", encode(ListContainersRequest())),
        "imaged": (f"{services}transfer.v1.Transfer/Transfer", encode(TransferRequest())),
        "taskd": (f"{services}tasks.v1.Tasks/List", encode(ListTasksRequest())),
        # Answered with one message, so that it can be called as if it were unary.
        "contentd": (f"{services}content.v1.Content/Read", encode(ReadContentRequest(digest=digest, size=16))),
        "snapshotd-native": (
            f"{services}snapshots.v1.Snapshots/Mounts",
            encode(MountsRequest(snapshotter="native", key="paced")),
        ),
    }


def forget(constellation: Constellation) -> None:
    """Remove what `reaching` made."""
    constellation.ctr("content", "rm", f"sha256:{hashlib.sha256(_BLOB).hexdigest()}", check=False)
    constellation.ctr("snapshots", "--snapshotter", "native", "rm", "paced", check=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    begun: float
    ended: float
    code: grpc.StatusCode

    @property
    def answered(self) -> bool:
        """By the service: whatever it said, but that it could not be reached."""
        return self.code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass
class Load:
    """Calls of one method; `outcomes` grows while they are made."""

    outcomes: list[Outcome] = field(default_factory=list)

    def since(self, moment: float) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.begun >= moment]

    def gap(self, since: float) -> float:
        """The longest time after `since` in which no call was answered, in seconds."""
        moments = sorted(outcome.ended for outcome in self.outcomes if outcome.answered and outcome.ended >= since)
        return max((after - before for before, after in zip([since, *moments], moments, strict=False)), default=0.0)

    async def answered_for(self, seconds: float, *, within: float) -> None:
        """Return once every call of the last `seconds` was answered. Raises AssertionError: that takes too long."""
        limit = time.monotonic() + within
        while True:
            recent = [outcome for outcome in self.outcomes if outcome.ended >= time.monotonic() - seconds]
            if recent and all(outcome.answered for outcome in recent):
                return
            assert time.monotonic() < limit, recent[-3:]
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def loaded(
    socket: Path, calls: Mapping[str, tuple[str, bytes]], *, rate: float, namespace: str
) -> AsyncIterator[dict[str, Load]]:
    """While the block runs, make calls (name -> path and request) in turns, `rate` a second in all."""
    loads = {name: Load() for name in calls}
    ring: Sequence[tuple[str, str, bytes]] = [(name, *call) for name, call in calls.items()]
    running: set[asyncio.Task[None]] = set()
    stop = asyncio.Event()

    async def one(channel: grpc.aio.Channel, name: str, method: str, request: bytes) -> None:
        begun = time.monotonic()
        call = channel.unary_unary(method)(request, metadata=(("containerd-namespace", namespace),), timeout=SECONDS)
        code = await call.code()
        loads[name].outcomes.append(Outcome(begun, time.monotonic(), code))

    async def pace(channel: grpc.aio.Channel) -> None:
        begun, made = time.monotonic(), 0
        while not stop.is_set():
            due = int((time.monotonic() - begun) * rate)
            while made < due:
                task = asyncio.get_running_loop().create_task(one(channel, *ring[made % len(ring)]), name="call")
                running.add(task)
                task.add_done_callback(running.discard)
                made += 1
            await asyncio.sleep(0.002)
        while running:
            await asyncio.wait(set(running))

    async with grpc.aio.insecure_channel(f"unix:{socket}", options=RECONNECT) as channel:
        async with asyncio.TaskGroup() as group:
            group.create_task(pace(channel), name="pace")
            try:
                yield loads
            finally:
                stop.set()
