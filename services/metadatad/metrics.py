"""What metadatad counts: collections, what is recorded, the event log; and what the back ends count themselves."""

import asyncio
import sqlite3
import time
from collections.abc import Iterator, Sequence
from typing import Final

from carina import meter
from carina.gc import Statistics
from carina.meter import Family, Kind, Sample
from carina.rpc.metrics import Process, gather
from metadatad import eventlog
from metadatad.backends import Registry
from metadatad.collector import Collector
from metadatad.records import Records

NAME: Final = "metadatad"
COUNTED_SECONDS: Final = 30.0
"""For how long counts of records are told again rather than counted: they cost a look at every record."""
_COUNTS: Final = {
    "images": "SELECT namespace, count(*) FROM images GROUP BY namespace",
    "containers": "SELECT namespace, count(*) FROM containers GROUP BY namespace",
    "leases": "SELECT namespace, count(*) FROM leases GROUP BY namespace",
    "ingests": "SELECT namespace, count(*) FROM ingests GROUP BY namespace",
    "content": "SELECT namespace, count(*) FROM blobs GROUP BY namespace",
    "snapshots": "SELECT namespace, count(*) FROM snapshots GROUP BY namespace",
}
_BYTES: Final = "SELECT namespace, sum(size) FROM blobs GROUP BY namespace"


class Sources:
    """What `carina.rpc.metrics.Metrics.sources` gets in metadatad."""

    def __init__(self, records: Records, collector: Collector, registry: Registry) -> None:
        self._records = records
        self._collector = collector
        self._registry = registry
        self._counted = -COUNTED_SECONDS
        self._counts: Sequence[Family] = ()

    async def own(self) -> list[Process]:
        moment = time.monotonic()
        if moment - self._counted >= COUNTED_SECONDS:
            self._counts = await self._records.read(_counts)
            self._counted = moment
        log = await self._records.read(eventlog.extent)
        families = [
            *self._counts,
            *_collections(await self._collector.statistics()),
            meter.gauge("carina_event_log_events", "Events that the log holds.", log.newest - log.oldest + 1),
            meter.gauge("carina_event_log_bytes", "Bytes that they take.", log.bytes),
            meter.total("carina_event_log_recorded_total", "Events ever recorded.", log.newest),
            self._back_ends(),
        ]
        return [Process(service=NAME, families=families)]

    def _back_ends(self) -> Family:
        samples = [
            Sample("", (("type", backend.type), ("name", backend.name)), float(not backend.error))
            for backend in self._registry.known()
        ]
        return Family("carina_backend_up", "Whether a back end answered when last asked.", Kind.GAUGE, samples)

    async def behind(self) -> list[Process]:
        """The back ends' own processes, all asked at once. Plugins that know nothing of this are left out."""
        asked = self._registry.processes()
        answers = await asyncio.gather(*(gather(name, channel) for name, channel in asked))
        own = {name for name, _ in asked if name == "contentd" or name.startswith("snapshotd-")}
        found = []
        for (name, _), processes in zip(asked, answers, strict=True):
            # A plugin may be a whole constellation, or call itself anything: it is known by its own name here.
            first = processes[0] if processes else Process(service=name, error="it said nothing")
            if name in own or not first.error:
                found.append(Process(service=name, families=first.families, error=first.error))
        return found


def _counts(connection: sqlite3.Connection) -> list[Family]:
    samples = [
        Sample("", (("type", type), ("namespace", namespace)), count)
        for type, query in _COUNTS.items()
        for namespace, count in connection.execute(query)
    ]
    sizes = [Sample("", (("namespace", namespace),), size) for namespace, size in connection.execute(_BYTES)]
    return [
        Family("carina_records", "Records, by type and namespace.", Kind.GAUGE, samples),
        Family("carina_content_bytes", "Bytes of the content that a namespace has.", Kind.GAUGE, sizes),
    ]


def _collections(found: Statistics) -> Iterator[Family]:
    yield meter.gauge("carina_gc_candidates", "What the next collection is to look at.", found.candidates)
    yield meter.total("carina_gc_lock_seconds_total", "Time that collections held the writer.", found.lock_seconds)
    yield meter.gauge("carina_gc_longest_lock_seconds", "The longest such time.", found.longest_lock_seconds)
    yield meter.total("carina_gc_full_marks_total", "Full marks.", found.checks)
    yield meter.total("carina_gc_missed_total", "Garbage that only a full mark found.", found.missed)
    removed = [Sample("", (("type", one.type),), one.objects) for one in found.removed]
    yield Family("carina_gc_removed_total", "Objects whose records were removed.", Kind.COUNTER, removed)
    sizes = [Sample("", (("type", one.type),), one.bytes) for one in found.removed]
    yield Family("carina_gc_removed_bytes_total", "Bytes of them.", Kind.COUNTER, sizes)
    remaining = [Sample("", (("type", one.type),), one.objects) for one in found.remaining]
    yield Family("carina_gc_remaining", "What back ends are still to remove.", Kind.GAUGE, remaining)
