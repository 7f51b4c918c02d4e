"""When to collect, and who waits for it.

A collection is due some time after something may have become garbage (containerd's scheduler and its thresholds),
when something expires, when a client asks, and again after a while where a back end could not remove what it should.
It looks at candidates alone; now and then a full mark checks, beside everything else, that those are all.
"""

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

from carina import meter, tracing
from carina.aio.finish import finish
from carina.digest import Digest
from carina.errors import CarinaError, Unavailable
from carina.gc import Collection, Statistics
from carina.sqlite import now
from metadatad import candidates, tombstones
from metadatad.counters import Counters
from metadatad.fullcheck import FullCheck
from metadatad.passes import Backend, Passes, backend_of
from metadatad.records import Records
from metadatad.removal import Remover
from metadatad.sweeper import Sweeper

RETRY_SECONDS: Final = 30.0
LONGEST_SLEEP: Final = 3600.0
LOOK_SECONDS: Final = 1.0
"""How soon after a change the collector looks when something expires."""
SHORTEST: Final = 0.005
"""What a collection counts as at least when the next occasion is planned, as in containerd."""

log = logging.getLogger(__name__)
_COLLECTIONS: Final = meter.counter(
    "containerd_gc_collections_total", "Collections, as containerd counts them.", "status"
)
_SECONDS: Final = meter.histogram("containerd_gc_gc_seconds", "How long collections took.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """containerd's settings of its scheduler, `[metadata.gc]`, and some of our own."""

    pause_threshold: float = 0.02
    """Share of the time that collections may take."""
    deletion_threshold: int = 0
    """Deletions after which a collection is due at once; 0: each makes one due at the next occasion."""
    mutation_threshold: int = 100
    """Changes of any kind after which a collection is due at the next occasion; 0: deletions alone make it due."""
    schedule_delay: float = 0.0
    """Seconds from the moment when it is due to its begin, to collect more at once."""
    startup_delay: float = 0.1
    """Seconds from the start of the process to the first collection."""
    sync_seconds: float = 600.0
    """How long a client that wants the disk clean waits for a back end at the most."""
    check_interval: float = 86_400.0
    """Seconds between full marks; 0: only after a crash or a migration."""


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
        self._sweeper = Sweeper(records, changed)
        self._wake = asyncio.Event()
        self._asked: list[asyncio.Future[Collection]] = []
        self._mutations = self._deletions = 0
        self._occasion = self._due = time.monotonic() + self._schedule.startup_delay
        self._look: float | None = None
        """When to look what expires next; None while nothing has changed since the last look."""
        self._passes: dict[Backend, Passes] = {}
        self._begun = 0
        """Number of collections that have begun."""
        self._collecting = False
        self._touched: dict[Backend, int] = {}
        """The last collection that removed something, by the back end that it is to go from."""
        self._counters = Counters()
        self._check = FullCheck(
            records, self._counters, interval=self._schedule.check_interval, found=lambda: self._make_due(0.0)
        )

    def mutated(self, *, deletion: bool) -> None:
        """See `metadatad.records.Collector`."""
        settings = self._schedule
        self._mutations += 1
        self._deletions += deletion
        moment = time.monotonic() + settings.schedule_delay
        if self._deletions or self._mutations >= settings.mutation_threshold > 0:
            self._make_due(max(moment, self._occasion))
        if self._deletions >= settings.deletion_threshold > 0:
            self._make_due(moment)
        if self._look is None:
            self._look = time.monotonic() + LOOK_SECONDS
            self._wake.set()

    async def collect(self) -> None:
        """See `metadatad.records.Collector`. Back ends that nothing went from are not waited for."""
        since = self._begun + (not self._collecting)
        await self._ask()
        await self._wait_for_disk(since)

    async def run(self, *, sync: bool = False, full: bool = False) -> Collection:
        """Collect now.

        Raises:
            Unavailable: the records went, but with `sync` a back end did not get clean in the time it has.
        """
        begun = time.monotonic()
        missed = len((await self._check.run()).missed) if full else 0
        since = self._begun + 1
        collection = await self._ask()
        if sync:
            await self._wait_for_disk(since)
            for passes in list(self._passes.values()):
                await passes.settled()
        seconds = time.monotonic() - begun if sync or full else collection.seconds
        return replace(collection, seconds=seconds, missed=missed)

    async def _ask(self) -> Collection:
        future: asyncio.Future[Collection] = asyncio.get_running_loop().create_future()
        self._asked.append(future)
        self._wake.set()
        return await future

    async def statistics(self) -> Statistics:
        return await self._records.read(self._counters.statistics)

    async def serve(self) -> None:
        """Collect whenever it is due, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._check.serve(self._schedule.startup_delay), name="full mark")
                while True:
                    await self._wait()
                    await self._collect(tasks)
        finally:
            for future in self._asked:
                if not future.done():
                    future.set_exception(Unavailable("the collector is shutting down"))

    async def _wait(self) -> None:
        while not self._asked and (pause := self._due - time.monotonic()) > 0:
            if self._look is not None and self._look <= time.monotonic():
                await self._look_ahead()
                continue
            self._wake.clear()
            look = LONGEST_SLEEP if self._look is None else self._look - time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(pause, look, LONGEST_SLEEP)):
                    await self._wake.wait()

    async def _look_ahead(self) -> None:
        """What was recorded since the last look may expire before anything else makes a collection due."""
        self._look = None
        try:
            due = await self._records.read(lambda connection: candidates.next_due(connection, 0))
        except CarinaError as error:
            log.warning("what expires next is not known: %s", error)
            self._look = time.monotonic() + RETRY_SECONDS
            return
        self._plan(due)

    def _make_due(self, moment: float) -> None:
        if moment < self._due:
            self._due = moment
            self._wake.set()

    async def _collect(self, tasks: asyncio.TaskGroup) -> None:
        asked, self._asked = self._asked, []
        self._mutations = self._deletions = 0
        self._due = time.monotonic() + LONGEST_SLEEP
        self._begun += 1
        self._collecting = True
        try:
            with tracing.span("collection"):
                collection = await finish(self._sweeper.collect(self._counters))
            _COLLECTIONS.add("success")
            _SECONDS.observe(collection.seconds)
            self._touched.update((backend_of(removed.type), self._begun) for removed in collection.removed)
            await self._start_removal(tasks)
        except CarinaError as error:
            log.warning("garbage collection failed: %s", error)
            self._counters.failures += 1
            _COLLECTIONS.add("fail")
            self._make_due(time.monotonic() + RETRY_SECONDS)
            for future in asked:
                if not future.done():
                    future.set_exception(error)
            return
        except BaseException:
            self._asked += asked
            raise
        finally:
            self._collecting = False
        self._look = None
        self._plan_next(*await self._records.read(_outlook))
        for future in asked:
            if not future.done():
                future.set_result(collection)

    def _plan_next(self, left: int, due: int | None) -> None:
        """The next occasion leaves as much time to others as the share says; what expires makes itself due."""
        share, counters = self._schedule.pause_threshold, self._counters
        average = max(counters.seconds / max(counters.collections, 1), SHORTEST)
        self._occasion = time.monotonic() + (average / share - average if share > 0 else 0.0)
        if left or self._due < self._occasion:  # noted, or asked for, while this one ran
            self._due = self._occasion
        self._plan(due)

    def _plan(self, due: int | None) -> None:
        """What is due at that moment, if anything, is to be looked at then."""
        if due is not None:
            self._make_due(max(self._occasion, time.monotonic() + (due - now()) / 1e6 + 0.001))

    async def _start_removal(self, tasks: asyncio.TaskGroup) -> None:
        """Have every back end with something to remove do so, without waiting for it."""
        removers = self._backends.removers()
        for gone in self._passes.keys() - removers.keys():
            del self._passes[gone]
        waiting = set(await self._records.read(tombstones.backends_waiting))
        for backend, remover in removers.items():
            passes = self._passes.get(backend)
            if passes is None or passes.remover is not remover:
                passes = self._passes[backend] = Passes(remover)
                waiting.add(backend)
            if backend in waiting:
                passes.request()
                if not passes.running:
                    passes.running = True
                    tasks.create_task(self._remove(passes), name=f"remove from {'/'.join(backend)}")
        tasks.create_task(self._settle(), name="settle intents")

    async def _remove(self, passes: Passes) -> None:
        try:
            if not await passes.work():
                self._make_due(time.monotonic() + RETRY_SECONDS)
        except CarinaError as error:
            log.warning("removal failed: %s", error)
            self._make_due(time.monotonic() + RETRY_SECONDS)

    async def _settle(self) -> None:
        with contextlib.suppress(CarinaError):
            await self._backends.settle()

    async def _wait_for_disk(self, since: int) -> None:
        """Wait for the back ends that something is to go from, by that collection or a later one."""
        limit = self._schedule.sync_seconds
        try:
            async with asyncio.timeout(limit):
                for backend, passes in list(self._passes.items()):
                    if self._touched.get(backend, 0) >= since:
                        await passes.idle.wait()
        except TimeoutError as error:
            raise Unavailable(f"a back end still removes what was collected {limit:g} s ago") from error


def _outlook(connection: sqlite3.Connection) -> tuple[int, int | None]:
    """Candidates that are due already, and when the next one is, or the next look for a removal."""
    moment = now()
    dues = [candidates.next_due(connection, moment), tombstones.next_due(connection, moment)]
    return candidates.waiting(connection, moment), min((due for due in dues if due is not None), default=None)
