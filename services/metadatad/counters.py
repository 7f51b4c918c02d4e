"""What collections and full marks have done since the process began."""

import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

from carina.gc import Collection, Removed, Statistics
from carina.sqlite import now, to_time
from metadatad import candidates, tombstones


@dataclass(slots=True)
class Counters:
    since: int = field(default_factory=now)
    collections: int = 0
    failures: int = 0
    seconds: float = 0.0
    lock_seconds: float = 0.0
    longest_lock_seconds: float = 0.0
    collected_at: int | None = None
    objects: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    checks: int = 0
    check_seconds: float = 0.0
    missed: int = 0
    checked_at: int | None = None
    """Of this process or an earlier one."""

    def locked(self, seconds: float) -> None:
        self.lock_seconds += seconds
        self.longest_lock_seconds = max(self.longest_lock_seconds, seconds)

    def collected(self, collection: Collection) -> None:
        self.collections += 1
        self.seconds += collection.seconds
        self.collected_at = now()
        for removed in collection.removed:
            self.objects[removed.type] += removed.objects
            self.bytes[removed.type] += removed.bytes

    def statistics(self, connection: sqlite3.Connection) -> Statistics:
        """Together with what is still to be done."""
        moment = now()
        return Statistics(
            since=to_time(self.since),
            collections=self.collections,
            failures=self.failures,
            seconds=self.seconds,
            lock_seconds=self.lock_seconds,
            longest_lock_seconds=self.longest_lock_seconds,
            collected_at=_time(self.collected_at),
            removed=tuple(
                Removed(type=type, objects=count, bytes=self.bytes[type])
                for type, count in sorted(self.objects.items())
            ),
            candidates=candidates.waiting(connection, moment),
            next_candidate=_time(candidates.next_due(connection, moment)),
            remaining=tuple(
                Removed(type=type, objects=count, bytes=size) for type, count, size in tombstones.totals(connection)
            ),
            checks=self.checks,
            check_seconds=self.check_seconds,
            missed=self.missed,
            checked_at=_time(self.checked_at),
        )


def _time(moment: int | None) -> datetime | None:
    return None if moment is None else to_time(moment)
