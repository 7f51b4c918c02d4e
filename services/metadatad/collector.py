"""When to collect, and who waits for it.

A collection is due some time after something may have become garbage (containerd's scheduler and its thresholds),
when something expires, when a client asks, and again after a while where a back end could not remove what it should.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from carina.aio.finish import finish
from carina.digest import Digest
from carina.errors import CarinaError, Unavailable
from carina.gc import Collection, Removed
from carina.sqlite import now
from metadatad import sweep, tombstones
from metadatad.records import Records, Transaction
from metadatad.removal import Remover
from metadatad.sweep import CHUNK, Garbage, Swept

RETRY_SECONDS: Final = 30.0
LONGEST_SLEEP: Final = 3600.0
STUCK_SECONDS: Final = 15.0
"""A removal that takes longer is not waited for by those who did not cause it."""
Backend = tuple[str, str]
"""`content` and an empty name, or `snapshot` and the snapshotter's name."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """containerd's settings of its scheduler, `[metadata.gc]`."""

    pause_threshold: float = 0.02
    """Share of the time that collections may take."""
    deletion_threshold: int = 0
    """Deletions after which a collection is due at once; 0: each makes one due at the next occasion."""
    mutation_threshold: int = 100
    """Changes of any kind after which a collection is due, if one of them was a deletion."""
    schedule_delay: float = 0.0
    """Seconds from the moment when it is due to its begin, to collect more at once."""
    startup_delay: float = 0.1
    """Seconds from the start of the process to the first collection."""
    sync_seconds: float = 600.0
    """How long a client that wants the disk clean waits for a back end at the most."""


class Backends(Protocol):
    """What the collector needs to know of the back ends."""

    def removers(self) -> Mapping[Backend, Remover]: ...

    async def settle(self) -> None:
        """End what a crash or a lost answer left under way, where the back end answers."""


class Collector:
    """`carina.gc.Collector`; it works while `serve` runs."""

    def __init__(
        self,
        records: Records,
        backends: Backends,
        *,
        schedule: Schedule | None = None,
        changed: Callable[[str, Digest], None] = lambda namespace, digest: None,
    ) -> None:
        self._records = records
        self._backends = backends
        self._schedule = schedule or Schedule()
        self._changed = changed
        self._wake = asyncio.Event()
        self._asked: list[asyncio.Future[Collection]] = []
        self._mutations = self._deletions = 0
        self._due = time.monotonic() + self._schedule.startup_delay
        self._earliest = 0.0
        self._passes: dict[Backend, _Passes] = {}
        self.surveyed: int | None = None
        """When the records were looked at for the last collection that removed all it found."""

    def mutated(self, *, deletion: bool) -> None:
        """See `metadatad.records.Collector`."""
        settings = self._schedule
        self._mutations += 1
        self._deletions += deletion
        if not self._deletions:
            return
        if settings.deletion_threshold and self._deletions >= settings.deletion_threshold:
            self._make_due(time.monotonic() + settings.schedule_delay)
        elif not settings.deletion_threshold or self._mutations >= settings.mutation_threshold > 0:
            self._make_due(max(time.monotonic() + settings.schedule_delay, self._earliest))

    async def collect(self) -> None:
        await self.run(sync=True)

    async def run(self, *, sync: bool = False) -> Collection:
        """Collect now.

        Raises:
            Unavailable: the records went, but with `sync` a back end did not get clean in the time it has.
        """
        begun = time.monotonic()
        future: asyncio.Future[Collection] = asyncio.get_running_loop().create_future()
        self._asked.append(future)
        self._wake.set()
        collection = await future
        if not sync:
            return collection
        await self._wait_for_disk({_backend_of(removed.type) for removed in collection.removed})
        return Collection(
            seconds=time.monotonic() - begun, lock_seconds=collection.lock_seconds, removed=collection.removed
        )

    async def serve(self) -> None:
        """Collect whenever it is due, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._wait()
                    await self._collect(tasks)
        finally:
            for future in self._asked:
                if not future.done():
                    future.set_exception(Unavailable("the collector is shutting down"))

    async def _wait(self) -> None:
        while not self._asked and (pause := self._due - time.monotonic()) > 0:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(pause, LONGEST_SLEEP)):
                    await self._wake.wait()

    def _make_due(self, moment: float) -> None:
        if moment < self._due:
            self._due = moment
            self._wake.set()

    async def _collect(self, tasks: asyncio.TaskGroup) -> None:
        asked, self._asked = self._asked, []
        self._mutations = self._deletions = 0
        self._due = time.monotonic() + LONGEST_SLEEP
        try:
            collection = await finish(self._mark_and_sweep())
            await self._start_removal(tasks)
        except CarinaError as error:
            log.warning("garbage collection failed: %s", error)
            self._make_due(time.monotonic() + RETRY_SECONDS)
            for future in asked:
                if not future.done():
                    future.set_exception(error)
            return
        except BaseException:
            self._asked += asked
            raise
        for future in asked:
            if not future.done():
                future.set_result(collection)
        self._plan_next(collection, await self._records.read(sweep.next_expiry))

    def _plan_next(self, collection: Collection, expiry: int | None) -> None:
        share = self._schedule.pause_threshold
        pause = collection.seconds / share - collection.seconds if share > 0 else 0.0
        self._earliest = time.monotonic() + pause
        if self._due < self._earliest:  # asked for while this one ran
            self._due = self._earliest
        if expiry is not None:
            self._make_due(max(self._earliest, time.monotonic() + (expiry - now()) / 1e6 + 0.001))

    async def _mark_and_sweep(self) -> Collection:
        begun, surveyed = time.monotonic(), now()
        swept, locked = Swept(), 0.0
        for garbage in await self._records.read(sweep.survey):
            candidates = garbage.candidates
            for start in range(0, len(candidates), CHUNK):
                one, seconds = await self._sweep(garbage, candidates[start : start + CHUNK])
                swept.add(one)
                locked += seconds
        self.surveyed = surveyed
        removed = tuple(
            Removed(type=type, objects=count, bytes=swept.bytes if type == "content" else 0)
            for type, count in sorted(swept.objects.items())
        )
        return Collection(seconds=time.monotonic() - begun, lock_seconds=locked, removed=removed)

    async def _sweep(self, garbage: Garbage, candidates: list[str]) -> tuple[Swept, float]:
        def run(transaction: Transaction) -> tuple[Swept, float]:
            begun = time.monotonic()
            return sweep.sweep(transaction, garbage, candidates), time.monotonic() - begun

        swept, seconds = await self._records.write(run)
        for namespace, digest in swept.content:
            self._changed(namespace, Digest(digest))
        return swept, seconds

    async def _start_removal(self, tasks: asyncio.TaskGroup) -> None:
        """Have every back end with something to remove do so, without waiting for it."""
        removers = self._backends.removers()
        for gone in self._passes.keys() - removers.keys():
            del self._passes[gone]
        waiting = set(await self._records.read(tombstones.backends_waiting))
        for backend, remover in removers.items():
            passes = self._passes.get(backend)
            if passes is None or passes.remover is not remover:
                passes = self._passes[backend] = _Passes(remover)
                waiting.add(backend)
            if backend in waiting:
                passes.request()
                if not passes.running:
                    passes.running = True
                    tasks.create_task(self._remove(passes), name=f"remove from {'/'.join(backend)}")
        tasks.create_task(self._settle(), name="settle intents")

    async def _remove(self, passes: "_Passes") -> None:
        try:
            if not await passes.work():
                self._make_due(time.monotonic() + RETRY_SECONDS)
        except CarinaError as error:
            log.warning("removal failed: %s", error)
            self._make_due(time.monotonic() + RETRY_SECONDS)

    async def _settle(self) -> None:
        with contextlib.suppress(CarinaError):
            await self._backends.settle()

    async def _wait_for_disk(self, touched: set[Backend]) -> None:
        """Wait for the back ends where something went; not for one that is stuck with older things."""
        limit = self._schedule.sync_seconds
        try:
            async with asyncio.timeout(limit):
                for backend, passes in list(self._passes.items()):
                    if backend in touched or not passes.stuck:
                        await passes.idle.wait()
        except TimeoutError as error:
            raise Unavailable(f"a back end still removes what was collected {limit:g} s ago") from error


class _Passes:
    """The removal at one back end: at most one pass runs, and one more follows where it was asked for meanwhile."""

    def __init__(self, remover: Remover) -> None:
        self.remover = remover
        self.running = False
        self.idle = asyncio.Event()
        self.idle.set()
        self._requested = False
        self._clean = True
        self._begun = 0.0

    @property
    def stuck(self) -> bool:
        """Whether the last pass failed, or the present one takes long."""
        return not self._clean or (self.running and time.monotonic() - self._begun > STUCK_SECONDS)

    def request(self) -> None:
        self._requested = True
        self.idle.clear()

    async def work(self) -> bool:
        """Run passes until none is asked for; True if the back end is clean."""
        self._begun = time.monotonic()
        try:
            while self._requested:
                self._requested = False
                self._clean = await self.remover.run()
        finally:
            self.running = False
            self.idle.set()
        return self._clean


def _backend_of(type: str) -> Backend:
    kind, _, name = type.partition("/")
    return ("snapshot", name) if kind == "snapshot" else ("content", "")
