"""Ingests: records against the store, both ways.

A record is there before the store is told of its ingest, and goes after the store let go of it.
"""

import sqlite3
from dataclasses import dataclass

from carina.check import Finding
from carina.digest import Digest
from carina.sqlite import now
from metadatad import blobs, tombstones
from metadatad.checkrun import INGEST_SECONDS, PAGE, Run, Suspects, there
from metadatad.names import Names
from metadatad.records import Transaction
from metadatad.sides import NOT_OURS, ContentSide


@dataclass(frozen=True, slots=True)
class _Row:
    namespace: str
    ref: str
    backend_ref: str
    expected: str | None
    updated_at: int


class IngestCheck:
    def __init__(self, run: Run, side: ContentSide) -> None:
        self._run = run
        self._side = side

    async def check(self) -> None:
        async with self._side.peer.answering():
            refs = [status.ref for status in await self._side.store.statuses()]
        names, suspects = Names(), Suspects()
        for start in range(0, len(refs), PAGE):
            for ref in await self._unknown(refs[start : start + PAGE]):
                suspects.add(ref)
        for ref in refs:
            names.add(ref)
        for ref in suspects.names:
            await self._orphan(ref)
        await self._run.too_many(self._side.peer.name, suspects)
        await self._stuck(names)

    async def _unknown(self, refs: list[str]) -> list[str]:
        def read(connection: sqlite3.Connection) -> list[str]:
            return [ref for ref in refs if not _known(connection, ref)]

        return await self._run.records.read(read)

    async def _orphan(self, ref: str) -> None:
        if not await self._exists(ref) or not await self._unknown([ref]):
            return
        done, settled = "", False
        if self._run.options.repair and self._run.options.remove_orphans:
            if self._side.own:
                await self._run.records.database.write(lambda c: tombstones.bury_ingest(c, ref, None))
                await self._side.remover.run()
                settled = not await self._exists(ref)
                done = "removed" if settled else ""
            else:
                done = f"left alone: {NOT_OURS}"
        await self._run.report(
            Finding(
                kind="orphaned",
                type="ingest",
                id=ref,
                detail=f"{self._side.peer.name} has it, and no namespace has recorded it",
                done=done,
                settled=settled,
            )
        )

    async def _stuck(self, names: Names) -> None:
        limit = now() - int(INGEST_SECONDS * 1e6)
        after = ("", "")
        while True:
            start = after
            page = await self._run.records.read(lambda c: _page(c, start, limit))  # noqa: B023
            for row in page:
                if row.backend_ref not in names and await self._is_stuck(row):
                    await self._tell_stuck(row)
            if len(page) < PAGE:
                return
            after = (page[-1].namespace, page[-1].ref)

    async def _is_stuck(self, row: _Row) -> bool:
        """A commit is under way where somebody has claimed what the ingest is to become."""
        key = ("content", Digest(row.expected)) if row.expected else ("ingest", row.backend_ref)
        async with self._side.claims.delete(key) as free:
            if not free or await self._exists(row.backend_ref):
                return False
            return await self._run.records.read(lambda c: _find(c, row.namespace, row.ref)) == row

    async def _tell_stuck(self, row: _Row) -> None:
        dropped = False
        if self._run.options.repair:
            dropped = await self._run.records.write(lambda transaction: _drop(transaction, row))
        await self._run.report(
            Finding(
                kind="stuck",
                namespace=row.namespace,
                type="ingest",
                id=row.ref,
                detail=f"{self._side.peer.name} no longer has it",
                done="dropped" if dropped else "",
                settled=dropped,
            )
        )

    async def _exists(self, ref: str) -> bool:
        async with self._side.peer.answering():
            return await there(self._side.store.status(ref))


def _known(connection: sqlite3.Connection, ref: str) -> bool:
    row = connection.execute(
        "SELECT 1 FROM ingests WHERE backend_ref = ?1 UNION ALL "
        "SELECT 1 FROM tombstones WHERE type = 'ingest' AND key = ?1",
        (ref,),
    ).fetchone()
    return row is not None


def _page(connection: sqlite3.Connection, after: tuple[str, str], limit: int) -> list[_Row]:
    rows = connection.execute(
        "SELECT namespace, ref, backend_ref, expected, updated_at FROM ingests "
        "WHERE NOT shared AND updated_at < ? AND (namespace, ref) > (?, ?) ORDER BY namespace, ref LIMIT ?",
        (limit, *after, PAGE),
    )
    return [_Row(*row) for row in rows]


def _find(connection: sqlite3.Connection, namespace: str, ref: str) -> _Row | None:
    row = connection.execute(
        "SELECT namespace, ref, backend_ref, expected, updated_at FROM ingests "
        "WHERE namespace = ? AND ref = ? AND NOT shared",
        (namespace, ref),
    ).fetchone()
    return None if row is None else _Row(*row)


def _drop(transaction: Transaction, row: _Row) -> bool:
    """What it may have become without our knowledge goes too, unless that is recorded."""
    if _find(transaction.connection, row.namespace, row.ref) != row:
        return False
    blobs.discard_ingest(transaction.connection, row.namespace, row.ref)
    transaction.deletion = True
    return True
