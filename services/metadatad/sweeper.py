"""One collection: candidates are looked at in a read, what is dead goes in short transactions, until nothing is left.

After each step everything that is still to be done is in the database.
"""

import sqlite3
import time
from collections.abc import Callable
from typing import Final

from carina import faults
from carina.digest import Digest
from carina.gc import Collection, Removed
from carina.sqlite import now
from metadatad import candidates
from metadatad.candidates import Examined
from metadatad.counters import Counters
from metadatad.edges import Node
from metadatad.records import Records, Transaction
from metadatad.sweep import CHUNK, SECONDS, Swept, sweep

ROUNDS: Final = 256
"""Reads in one collection at the most; what others make candidates meanwhile is left to the next."""


class Sweeper:
    """Collects, and tells whose content went (`changed`)."""

    def __init__(self, records: Records, changed: Callable[[str, Digest], None]) -> None:
        self._records = records
        self._changed = changed

    async def collect(self, counters: Counters) -> Collection:
        begun, moment = time.monotonic(), now()
        swept, locked, looked_at = Swept(), counters.lock_seconds, 0
        for _ in range(ROUNDS):
            examined = await self._records.read(lambda connection: candidates.examine(connection, moment))
            faults.point("metadatad.collection.examined")
            looked_at += examined.rows
            found = await self._carry_out(examined, moment, counters)
            swept.add(found)
            if not (examined.more or found.objects):
                break
        collection = Collection(
            seconds=time.monotonic() - begun,
            lock_seconds=counters.lock_seconds - locked,
            removed=tuple(
                Removed(type=type, objects=count, bytes=swept.bytes if type == "content" else 0)
                for type, count in sorted(swept.objects.items())
            ),
            candidates=looked_at,
        )
        counters.collected(collection)
        return collection

    async def _carry_out(self, examined: Examined, moment: int, counters: Counters) -> Swept:
        swept = Swept()
        for namespace, nodes in examined.dead.items():
            doomed, done = frozenset(nodes), 0
            while done < len(nodes):
                part = nodes[done : done + CHUNK]
                found, seconds = await self._sweep(namespace, part, moment, doomed)
                counters.locked(seconds)
                swept.add(found)
                done += found.nodes
                faults.point("metadatad.collection.swept")
        if examined.settled:
            await self._settle(examined, counters)
            faults.point("metadatad.collection.settled")
        return swept

    async def _sweep(
        self, namespace: str, nodes: list[Node], moment: int, doomed: frozenset[Node]
    ) -> tuple[Swept, float]:
        def run(transaction: Transaction) -> tuple[Swept, float]:
            begun = time.monotonic()
            return sweep(transaction, namespace, nodes, moment, doomed=doomed, seconds=SECONDS), begun

        swept, begun = await self._records.write(run)
        seconds = time.monotonic() - begun
        for owner, digest in swept.content:
            self._changed(owner, Digest(digest))
        return swept, seconds

    async def _settle(self, examined: Examined, counters: Counters) -> None:
        def run(connection: sqlite3.Connection) -> float:
            begun = time.monotonic()
            candidates.settle(connection, examined)
            return begun

        begun = await self._records.database.write(run)
        counters.locked(time.monotonic() - begun)
