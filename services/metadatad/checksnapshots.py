"""Snapshots of one snapshotter: records against the back end, both ways, their kinds and parents.

An intent is recorded before the back end is asked for anything, and goes with the record of what became of it.
So a snapshot with an intent is at work; one without is where its record says, or is not in order.
"""

import contextlib
import sqlite3
from dataclasses import dataclass
from typing import Final

from carina import labels
from carina.check import Finding
from carina.errors import NotFound
from carina.snapshots import Info, Kind
from carina.sqlite import now
from metadatad import snaprows, tombstones
from metadatad.checkrun import PAGE, Run, check_tombstones, compare, there
from metadatad.names import Names
from metadatad.records import Transaction
from metadatad.sides import NOT_OURS, SnapshotSide
from metadatad.snaprows import Intent

_COLUMNS: Final = "s.namespace, s.key, s.backend_key, s.kind, s.parent, p.backend_key, s.created_at"
_JOIN: Final = (
    "FROM snapshots AS s LEFT JOIN snapshots AS p "
    "ON p.namespace = s.namespace AND p.snapshotter = s.snapshotter AND p.key = s.parent WHERE s.snapshotter = ?"
)


@dataclass(frozen=True, slots=True)
class _Row:
    namespace: str
    key: str
    backend_key: str
    kind: int
    parent: str
    backend_parent: str | None
    created_at: int

    def differs(self, info: Info) -> str:
        if self.kind != info.kind.value:
            return f"it is {info.kind.name.lower()}, the record says {Kind(self.kind).name.lower()}"
        if (not self.parent or self.backend_parent is not None) and info.parent != (self.backend_parent or ""):
            return f"it stands on {info.parent or 'nothing'}, the record says {self.backend_parent or 'nothing'}"
        return ""


class SnapshotCheck:
    def __init__(self, run: Run, side: SnapshotSide) -> None:
        self._run = run
        self._side = side
        self._type = f"snapshot/{side.name}"
        self._orphans: list[str] = []

    async def check(self) -> None:
        names, suspects = await compare(self._run, self._side.peer, self._side.snapshotter.walk(), self._strange)
        for name in suspects.names:
            await self._look_again(name)
        await self._tell_orphans()
        await self._run.too_many(self._side.peer.name, suspects)
        await self._records(names)
        await self._intents()
        await check_tombstones(
            self._run,
            types=("snapshot",),
            backend=self._side.name,
            exists=lambda _, key: self._exists(key),
            remover=self._side.remover,
        )

    def _strange(self, connection: sqlite3.Connection, infos: list[Info]) -> list[str]:
        """What no namespace has recorded, or not like that."""
        found = []
        for info in infos:
            rows = _rows(connection, self._side.name, info.name)
            if not rows or any(row.differs(info) for row in rows):
                found.append(info.name)
        return found

    async def _look_again(self, name: str) -> None:
        async with self._side.claims.delete(("snapshot", self._side.name, name)) as free:
            if not free:
                return
            before = await self._facts(name)
            try:
                info = await self._stat(name)
            except NotFound:
                return
            after = await self._facts(name)
        rows, busy = after
        if before != after or busy or await self._is_target(info):
            return
        if not rows:
            self._orphans.append(name)
        for row in rows:
            if row.differs(info):
                await self._run.report(
                    Finding(
                        kind="mismatch",
                        namespace=row.namespace,
                        type=self._type,
                        id=row.key,
                        detail=f"{self._side.peer.name} has it as {name}: {row.differs(info)}",
                    )
                )

    async def _facts(self, name: str) -> tuple[list[_Row], bool]:
        def read(connection: sqlite3.Connection) -> tuple[list[_Row], bool]:
            return _rows(connection, self._side.name, name), _busy(connection, self._side.name, name)

        return await self._run.records.read(read)

    async def _is_target(self, info: Info) -> bool:
        """A remote snapshotter may just have made it for a call that will record it under the name it asked for."""
        target = info.labels.get(labels.SNAPSHOT_REF)
        if not target:
            return False
        intents = await self._run.records.read(lambda c: snaprows.intents(c, self._side.name))
        return any(intent.labels.get(labels.SNAPSHOT_REF) == target for intent in intents)

    async def _tell_orphans(self) -> None:
        """All of them are to be removed before one pass over them, which takes children first."""
        removing = self._run.options.repair and self._run.options.remove_orphans
        if removing and self._side.own and self._orphans:

            def bury(connection: sqlite3.Connection) -> None:
                for name in self._orphans:
                    tombstones.bury_snapshot(connection, self._side.name, name)

            await self._run.records.database.write(bury)
            await self._side.remover.run()
        for name in self._orphans:
            done, settled = "", False
            if removing and self._side.own:
                settled = not await self._exists(name)
                done = "removed" if settled else "to be removed when nothing stands on it any more"
            elif removing:
                done = f"left alone: {NOT_OURS}"
            await self._run.report(
                Finding(
                    kind="orphaned",
                    type=self._type,
                    id=name,
                    detail=f"{self._side.peer.name} has it, and no namespace has recorded it",
                    done=done,
                    settled=settled,
                )
            )

    async def _records(self, names: Names) -> None:
        after = ("", "")
        while True:
            start = after
            page = await self._run.records.read(lambda c: _page(c, self._side.name, start))  # noqa: B023
            for row in page:
                if row.parent and row.backend_parent is None:
                    await self._tell(row, "dangling", f"its parent {row.parent!r} is not recorded")
                if row.backend_key not in names and await self._is_missing(row):
                    await self._tell(row, "missing", f"{self._side.peer.name} does not have {row.backend_key}")
            self._run.count["snapshots"] += len(page)
            if len(page) < PAGE:
                return
            after = (page[-1].namespace, page[-1].key)

    async def _is_missing(self, row: _Row) -> bool:
        if await self._exists(row.backend_key):
            return False
        rows, busy = await self._facts(row.backend_key)
        return row in rows and not busy

    async def _tell(self, row: _Row, kind: str, detail: str) -> None:
        await self._run.report(Finding(kind=kind, namespace=row.namespace, type=self._type, id=row.key, detail=detail))

    async def _intents(self) -> None:
        """A call that was under way in this process may last as long as calls may; one from before may not."""
        allowed = int((self._side.peer.work_seconds + 60) * 1e6)
        for intent, created in await self._run.records.read(lambda c: _intents(c, self._side.name)):
            if created >= self._run.started and created + allowed > now():
                continue
            done = await self._settle(intent) if self._run.options.repair else ""
            if not done and not await self._run.records.read(lambda c: _noted(c, intent.id)):  # noqa: B023
                continue
            await self._run.report(
                Finding(
                    kind="intent",
                    namespace=intent.namespace,
                    type=self._type,
                    id=intent.key,
                    detail=f"a call to {intent.action} it never ended",
                    done=done,
                    settled=bool(done),
                )
            )

    async def _settle(self, intent: Intent) -> str:
        """A prepare that was not recorded is undone; a commit that the back end made is recorded."""
        happened = False
        if intent.action == "commit":
            with contextlib.suppress(NotFound):
                happened = intent.is_committed_as(await self._stat(intent.backend_key))

        def decide(transaction: Transaction) -> str:
            if not _noted(transaction.connection, intent.id):
                return ""
            return "recorded" if snaprows.conclude(transaction, intent, happened=happened) else "undone"

        return await self._run.records.write(decide)

    async def _stat(self, name: str) -> Info:
        async with self._side.peer.answering():
            return await self._side.snapshotter.stat(name)

    async def _exists(self, name: str) -> bool:
        return await there(self._stat(name))


def _rows(connection: sqlite3.Connection, snapshotter: str, backend_key: str) -> list[_Row]:
    rows = connection.execute(
        f"SELECT {_COLUMNS} {_JOIN} AND s.backend_key = ? ORDER BY s.namespace, s.key",
        (snapshotter, backend_key),
    )
    return [_Row(*row) for row in rows]


def _page(connection: sqlite3.Connection, snapshotter: str, after: tuple[str, str]) -> list[_Row]:
    rows = connection.execute(
        f"SELECT {_COLUMNS} {_JOIN} AND (s.namespace, s.key) > (?, ?) ORDER BY s.namespace, s.key LIMIT ?",
        (snapshotter, *after, PAGE),
    )
    return [_Row(*row) for row in rows]


def _busy(connection: sqlite3.Connection, snapshotter: str, backend_key: str) -> bool:
    row = connection.execute(
        "SELECT 1 FROM intents WHERE snapshotter = ?1 AND (backend_key = ?2 OR details ->> 'backend_source' = ?2) "
        "UNION ALL SELECT 1 FROM tombstones WHERE type = 'snapshot' AND backend = ?1 AND key = ?2",
        (snapshotter, backend_key),
    ).fetchone()
    return row is not None


def _intents(connection: sqlite3.Connection, snapshotter: str) -> list[tuple[Intent, int]]:
    created = dict(connection.execute("SELECT id, created_at FROM intents WHERE snapshotter = ?", (snapshotter,)))
    return [(intent, created[intent.id]) for intent in snaprows.intents(connection, snapshotter)]


def _noted(connection: sqlite3.Connection, number: int) -> bool:
    return connection.execute("SELECT 1 FROM intents WHERE id = ?", (number,)).fetchone() is not None
