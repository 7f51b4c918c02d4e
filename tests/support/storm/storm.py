"""Rounds of work under faults, and what came of them.

A round: clients work, something is hurt and made whole again, clients stop, and everything is looked at.
The same seed gives the same choices; what the kernel and the clock make of them differs.
"""

import asyncio
import dataclasses
import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from carina.client import Client
from support import image
from support.registry import Registry
from support.storm import audit
from support.storm.accounts import Accounts
from support.storm.nemesis import Harm, Kind
from support.storm.peers import Ours, Peer
from support.storm.probes import Probes, probes
from support.storm.work import Worker, closing

WORKERS: Final = 4
CALM: Final = 1.0
"""Seconds of work before and after a fault."""
END_SECONDS: Final = 130.0
"""In which every client has ended its last operation."""
GROWTH: Final = 1.6
"""Times the memory after the first round that is still no leak: caches, and what the allocator keeps."""


@dataclass
class Round:
    number: int
    kind: str
    detail: str
    seconds: float
    acknowledged: int
    lost: list[str]
    stuck: list[str]
    leaked: list[str]
    refused: dict[str, int]
    probes: dict[str, Any]
    hurt: list[str]


@dataclass
class Report:
    peer: str
    seed: int
    rounds: list[Round] = field(default_factory=list)
    operations: dict[str, int] = field(default_factory=dict)
    memory_first: dict[str, float] = field(default_factory=dict)
    memory_last: dict[str, float] = field(default_factory=dict)

    def total(self, what: str) -> int:
        return sum(len(getattr(one, what)) for one in self.rounds)

    @property
    def failed(self) -> bool:
        return any(self.total(what) for what in ("lost", "stuck", "leaked"))

    def line(self) -> str:
        acknowledged = sum(one.acknowledged for one in self.rounds)
        return (
            f"rounds {len(self.rounds)}, acknowledged {acknowledged}, lost {self.total('lost')}, "
            f"stuck {self.total('stuck')}, leaked {self.total('leaked')}"
        )

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1))


def images_in(registry: Registry) -> Sequence[Mapping[str, image.Image]]:
    """For each client some images, in the registry by their references."""
    base = image.layer(image.busybox_tar())
    result = []
    for worker in range(WORKERS):
        own: dict[str, image.Image] = {}
        for number in range(3):
            noise = random.Random(f"{worker} {number}").randbytes(200_000)
            top = image.layer(image.tar({"noise": noise}), ("gzip", "zstd", "")[number])
            made = image.build(layers=[base, top])
            own[registry.push(f"storm/w{worker}", str(number), made)] = made
        result.append(own)
    return result


def workers_of(
    peer: Peer, accounts: Accounts, images: Sequence[Mapping[str, image.Image]], *, seed: int, number: int = 0
) -> list[Worker]:
    """The clients of a round, in two namespaces."""
    return [
        Worker(
            peer,
            accounts,
            f"r{number}w{index}",
            peer.namespaces[index % 2],
            images=images[index],
            seed=f"{seed} {number} {index}",
        )
        for index in range(WORKERS)
    ]


class Storm:
    """One peer, its clients and a registry, for any number of rounds."""

    def __init__(self, peer: Peer, registry: Registry, *, seed: int, kinds: Sequence[Kind], loud: bool = False) -> None:
        self.peer, self.registry, self.seed, self.loud = peer, registry, seed, loud
        self.report = Report(peer.name, seed)
        peer.registry = registry
        self._kinds, self._order = kinds, random.Random(f"order {seed}")
        self._waiting: list[Kind] = []
        self.accounts = Accounts()
        self._events, self._census = audit.EventAudit(), audit.Census(peer)
        self._log = audit.Log(peer)
        self._told: set[str] = set()

    async def rounds(self, *, seconds: float, at_least: int = 1) -> Report:
        """As many as fit into the time."""
        images = await asyncio.to_thread(images_in, self.registry)
        limit = time.monotonic() + seconds
        number = 0
        while number < at_least or time.monotonic() < limit:
            await self._round(number, images)
            if not number:
                self.report.memory_first = audit.memory(self.peer)
            self.report.memory_last = audit.memory(self.peer)
            number += 1
        self._check_memory()
        self.report.operations = dict(self.accounts.by_kind)
        return self.report

    def _next_kind(self, chance: random.Random) -> Kind:
        if not self._waiting:
            self._waiting = self._order.sample(self._kinds, len(self._kinds))
        return self._waiting.pop()

    async def _round(self, number: int, images: Sequence[Mapping[str, image.Image]]) -> None:
        accounts, chance = self.accounts, random.Random(f"{self.seed} {number}")
        kind = self._next_kind(chance)
        before = accounts.acknowledged
        begun = time.monotonic()
        accounts.runs.clear()
        workers = workers_of(self.peer, accounts, images, seed=self.seed, number=number)
        async with closing(workers), Client(f"unix://{self.peer.socket}") as client:
            async with probes(self.peer) as seen:
                harm = await self._weather(workers, kind, chance)
            whole = await audit.recovered(self.peer, accounts, client)
            if whole:
                await self._look(client, workers, full=harm.kind.startswith("full"))
        self._log.check(accounts, excused=harm.kind == "little memory")
        self._note(number, harm, seen, seconds=time.monotonic() - begun, acknowledged=accounts.acknowledged - before)

    async def _weather(self, workers: list[Worker], kind: Kind, chance: random.Random) -> Harm:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(worker.work(), name=worker.name) for worker in workers]
            await asyncio.sleep(CALM * (0.5 + chance.random()))
            harm = await kind(self.peer, self.accounts, chance)
            await asyncio.sleep(CALM)
            for worker in workers:
                worker.stop.set()
            _, late = await asyncio.wait(tasks, timeout=END_SECONDS)
            for task in late:
                self.accounts.stuck.append(f"client {task.get_name()} does not end")
                task.cancel()
        return harm

    async def _look(self, client: Client, workers: list[Worker], *, full: bool) -> None:
        accounts = self.accounts
        await audit.tidied(workers, accounts)
        if isinstance(self.peer, Ours):
            # In this order: nothing live may go with the collections.
            await audit.disagreements(client, accounts, repair=full)
        await audit.losses(client, accounts)
        if isinstance(self.peer, Ours):
            await self._events.check(client, accounts, full=full)
        await self._census.check(accounts)

    def _note(self, number: int, harm: Harm, seen: Probes, *, seconds: float, acknowledged: int) -> None:
        accounts = self.accounts
        # What stays is told once.
        accounts.leaked[:] = [text for text in accounts.leaked if text not in self._told]
        self._told.update(accounts.leaked)
        one = Round(
            number=number, kind=harm.kind, detail=harm.detail, seconds=round(seconds, 1), acknowledged=acknowledged,
            lost=[*accounts.lost], stuck=[*accounts.stuck], leaked=[*accounts.leaked], refused=dict(accounts.refused),
            probes={name: dataclasses.asdict(service) for name, service in seen.seen.items()}, hurt=sorted(harm.hurt),
        )  # fmt: skip
        for notes in (accounts.lost, accounts.stuck, accounts.leaked):
            notes.clear()
        accounts.refused.clear()
        self.report.rounds.append(one)
        if self.loud:
            did = f"{harm.kind} ({harm.detail})" if harm.detail else harm.kind
            print(f"round {number}: {did}, {acknowledged} acknowledged, {seconds:.0f} s", flush=True)
            for what in ("lost", "stuck", "leaked"):
                for text in getattr(one, what):
                    print(f"  {what}: {text}", flush=True)
            if os.environ.get("CARINA_STORM_ERRORS"):
                for text, count in one.refused.items():
                    print(f"  {count} x {text}", file=sys.stderr, flush=True)

    def _check_memory(self) -> None:
        for name, first in self.report.memory_first.items():
            last = self.report.memory_last.get(name, 0.0)
            if last > GROWTH * first + 16:
                text = f"{name} has {last} MiB, and had {first} MiB after the first round"
                self.report.rounds[-1].leaked.append(text)
