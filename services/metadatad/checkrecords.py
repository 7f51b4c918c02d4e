"""Records against one another: references against the labels and fields that state them, and what they lead to.

Each page is read in one snapshot of the database, and what states a reference is written with it in one transaction.
So there is nothing to look at twice.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from carina.aio.threads import in_thread
from carina.check import Finding
from carina.labels import GC_FLAT
from carina.sqlite import integrity
from metadatad import edges
from metadatad.checkrun import PAGE, Run
from metadatad.columns import unpack
from metadatad.edges import Node
from metadatad.records import Transaction

Reference = tuple[Node, str]
Key = tuple[str, ...]

_DANGLING: Final = (
    (
        "image",
        (
            "SELECT namespace, name, digest FROM images AS o WHERE (namespace, name) > (?, ?) AND NOT EXISTS (SELECT 1 "
            "FROM blobs AS b WHERE b.namespace = o.namespace AND b.digest = o.digest) ORDER BY namespace, name LIMIT ?"
        ),
        "its target {} is not recorded",
    ),
    (
        "container",
        (
            "SELECT namespace, id, snapshot_key FROM containers AS o WHERE (namespace, id) > (?, ?) "
            "AND snapshot_key != '' AND snapshotter != '' AND NOT EXISTS (SELECT 1 FROM snapshots AS s "
            "WHERE s.namespace = o.namespace AND s.snapshotter = o.snapshotter AND s.key = o.snapshot_key) "
            "ORDER BY namespace, id LIMIT ?"
        ),
        "its snapshot {} is not recorded",
    ),
)
_ORPHANS: Final = (
    "SELECT namespace, node FROM (SELECT DISTINCT namespace, CASE WHEN kind IN ('bref', 'cond') THEN destination "
    "ELSE source END AS node FROM edges UNION SELECT namespace, node FROM pins) AS e WHERE (namespace, node) > (?, ?) "
    "ORDER BY namespace, node LIMIT ?"
)


@dataclass(frozen=True, slots=True)
class Stated:
    """A record and what it states."""

    namespace: str
    type: str
    """As in `Finding`."""
    id: str
    node: Node
    labels: str
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class _Table:
    """How the records of one kind are gone through."""

    columns: str
    table: str
    keys: str
    """The columns that order them, beginning with the namespace."""
    read: Callable[[sqlite3.Connection, sqlite3.Row], Stated]
    width: int = 2


def _image(connection: sqlite3.Connection, row: sqlite3.Row) -> Stated:
    namespace, name, labels, digest = row
    return Stated(namespace, "image", name, edges.image(name), labels, ((edges.content(digest), "target"),))


def _blob(connection: sqlite3.Connection, row: sqlite3.Row) -> Stated:
    namespace, digest, labels = row
    return Stated(namespace, "content", digest, edges.content(digest), labels, ())


def _ingest(connection: sqlite3.Connection, row: sqlite3.Row) -> Stated:
    namespace, ref, shared, expected = row
    kept = ((edges.content(expected), "target"),) if shared and expected else ()
    return Stated(namespace, "ingest", ref, edges.ingest(ref), "{}", kept)


def _snapshot(connection: sqlite3.Connection, row: sqlite3.Row) -> Stated:
    namespace, snapshotter, key, labels, parent = row
    kept = ((edges.snapshot(snapshotter, parent), "parent"),) if parent else ()
    return Stated(namespace, f"snapshot/{snapshotter}", key, edges.snapshot(snapshotter, key), labels, kept)


def _container(connection: sqlite3.Connection, row: sqlite3.Row) -> Stated:
    namespace, id, labels, snapshotter, key = row
    kept = ((edges.snapshot(snapshotter, key), "target"),) if snapshotter and key else ()
    return Stated(namespace, "container", id, edges.container(id), labels, kept)


def _sandbox(connection: sqlite3.Connection, row: sqlite3.Row) -> Stated:
    namespace, id, labels = row
    return Stated(namespace, "sandbox", id, edges.sandbox(id), labels, ())


def _lease(connection: sqlite3.Connection, row: sqlite3.Row) -> Stated:
    namespace, id, labels = row
    flat = GC_FLAT in unpack(labels)
    held = connection.execute(
        "SELECT type, id FROM lease_resources WHERE namespace = ? AND lease = ?", (namespace, id)
    ).fetchall()
    # An ingest keeps its blob in any case.
    kept = tuple((edges.resource(type, name), "flat" if flat and type != "ingests" else "ref") for type, name in held)
    return Stated(namespace, "lease", id, edges.lease(id), labels, kept)


_TABLES: Final = (
    _Table("namespace, name, labels, digest", "images", "namespace, name", _image),
    _Table("namespace, digest, labels", "blobs", "namespace, digest", _blob),
    _Table("namespace, ref, shared, expected", "ingests", "namespace, ref", _ingest),
    _Table(
        "namespace, snapshotter, key, labels, parent", "snapshots", "namespace, snapshotter, key", _snapshot, width=3
    ),
    _Table("namespace, id, labels, snapshotter, snapshot_key", "containers", "namespace, id", _container),
    _Table("namespace, id, labels", "sandboxes", "namespace, id", _sandbox),
    _Table("namespace, id, labels", "leases", "namespace, id", _lease),
)
_OF_NODE: Final = {
    "images": "SELECT 1 FROM images WHERE namespace = ? AND name = ?",
    "content": "SELECT 1 FROM blobs WHERE namespace = ? AND digest = ?",
    "ingests": "SELECT 1 FROM ingests WHERE namespace = ? AND ref = ?",
    "snapshots": "SELECT 1 FROM snapshots WHERE namespace = ? AND snapshotter || '/' || key = ?",
    "containers": "SELECT 1 FROM containers WHERE namespace = ? AND id = ?",
    "sandboxes": "SELECT 1 FROM sandboxes WHERE namespace = ? AND id = ?",
    "leases": "SELECT 1 FROM leases WHERE namespace = ? AND id = ?",
}


class RecordCheck:
    def __init__(self, run: Run, database: Path) -> None:
        self._run = run
        self._database = database

    async def check(self) -> None:
        for problem in await in_thread(integrity.problems, self._database):
            await self._run.report(Finding(kind="database", type="database", id=str(self._database), detail=problem))
        for type, query, detail in _DANGLING:
            await self._dangling(type, query, detail)
        for table in _TABLES:
            await self._stated(table)
        await self._stateless()

    async def _dangling(self, type: str, query: str, detail: str) -> None:
        after: Key = ("", "")
        while True:
            page = await self._run.records.read(lambda c: c.execute(query, (*after, PAGE)).fetchall())  # noqa: B023
            for namespace, id, target in page:
                await self._run.report(
                    Finding(kind="dangling", namespace=namespace, type=type, id=id, detail=detail.format(target))
                )
            if len(page) < PAGE:
                return
            after = page[-1][:2]

    async def _stated(self, table: _Table) -> None:
        """What each record states, against the rows that say so."""
        marks = ", ".join("?" * table.width)
        query = (
            f"SELECT {table.columns} FROM {table.table} WHERE ({table.keys}) > ({marks}) "  # noqa: S608
            f"ORDER BY {table.keys} LIMIT ?"
        )
        after: Key = ("",) * table.width
        while True:
            count, last, wrong = await self._run.records.read(
                lambda c: _wrong(c, table, c.execute(query, (*after, PAGE)).fetchall())  # noqa: B023
            )
            for stated, detail in wrong:
                await self._tell(stated.namespace, stated.type, stated.id, detail, lambda t: _restate(t, stated))  # noqa: B023
            self._run.count["records"] += count
            if count < PAGE:
                return
            after = last

    async def _stateless(self) -> None:
        """References and pins of records that are not there."""
        after: Key = ("", "")
        while True:
            page, wrong = await self._run.records.read(
                lambda c: _absent(c, c.execute(_ORPHANS, (*after, PAGE)).fetchall())  # noqa: B023
            )
            for namespace, node in wrong:
                type, _, id = node.partition("/")
                noun = {"content": "content", "snapshots": "snapshot"}.get(type, type.removesuffix("s"))
                if type == "snapshots":
                    snapshotter, _, id = id.partition("/")
                    noun = f"snapshot/{snapshotter}"
                await self._tell(
                    namespace,
                    noun,
                    id,
                    "it is not recorded, and references of it are",
                    lambda t: _forget(t, namespace, node),  # noqa: B023
                )
            if len(page) < PAGE:
                return
            after = page[-1]

    async def _tell(self, namespace: str, type: str, id: str, detail: str, mend: Callable[[Transaction], None]) -> None:
        repair = self._run.options.repair
        if repair:
            await self._run.records.write(mend)
        await self._run.report(
            Finding(
                kind="edges",
                namespace=namespace,
                type=type,
                id=id,
                detail=detail,
                done="stated again" if repair else "",
                settled=repair,
            )
        )


def _wrong(
    connection: sqlite3.Connection, table: _Table, rows: Sequence[sqlite3.Row]
) -> tuple[int, Key, list[tuple[Stated, str]]]:
    wrong = []
    for row in rows:
        stated = table.read(connection, row)
        detail = _difference(connection, stated)
        if detail:
            wrong.append((stated, detail))
    last = tuple(rows[-1][: table.width]) if rows else ()
    return len(rows), last, wrong


def _difference(connection: sqlite3.Connection, stated: Stated) -> str:
    labels = unpack(stated.labels)
    wanted = {(stated.node, other, kind, "") for other, kind in stated.references}
    wanted |= {(e.source, e.destination, e.kind, e.condition) for e in edges.of_labels(stated.node, labels)}
    found = set(
        connection.execute(
            "SELECT source, destination, kind, condition FROM edges WHERE namespace = ?1 AND source = ?2 "
            "AND kind IN ('target', 'parent', 'ref', 'flat') UNION ALL "
            "SELECT source, destination, kind, condition FROM edges WHERE namespace = ?1 AND destination = ?2 "
            "AND kind IN ('bref', 'cond')",
            (stated.namespace, stated.node),
        )
    )
    pinned = set(
        connection.execute(
            "SELECT kind, until FROM pins WHERE namespace = ? AND node = ?", (stated.namespace, stated.node)
        )
    )
    pins = {(pin.kind, pin.until) for pin in edges.pins_of_labels(labels)}
    parts = [
        *(f"the reference from {source} to {other} is not recorded" for source, other, _, _ in sorted(wanted - found)),
        *(f"nothing states the reference from {source} to {other}" for source, other, _, _ in sorted(found - wanted)),
        *(f"its label for {kind} is not recorded" for kind, _ in sorted(pins - pinned, key=str)),
        *(f"nothing states its {kind}" for kind, _ in sorted(pinned - pins, key=str)),
    ]
    return "; ".join(parts[:3]) + (f"; and {len(parts) - 3} more" if len(parts) > 3 else "")


def _restate(transaction: Transaction, stated: Stated) -> None:
    """From the record as it is now."""
    for now in _again(transaction.connection, stated):
        edges.state(transaction.connection, now.namespace, now.node, unpack(now.labels), references=now.references)
        transaction.deletion = True


def _again(connection: sqlite3.Connection, stated: Stated) -> Iterator[Stated]:
    table = next(table for table in _TABLES if table.table.startswith(_noun(stated.type)))
    keys = table.keys.replace(", ", " = ? AND ") + " = ?"
    snapshotter = stated.type.partition("/")[2]
    values = (stated.namespace, *([snapshotter] if snapshotter else []), stated.id)
    for row in connection.execute(f"SELECT {table.columns} FROM {table.table} WHERE {keys}", values).fetchall():  # noqa: S608
        yield table.read(connection, row)


def _noun(type: str) -> str:
    return {"content": "blobs", "sandbox": "sandboxes"}.get(type, type.partition("/")[0])


def _absent(connection: sqlite3.Connection, rows: Sequence[Key]) -> tuple[Sequence[Key], list[tuple[str, str]]]:
    wrong = []
    for namespace, node in rows:
        type, _, id = node.partition("/")
        query = _OF_NODE.get(type)
        if query is not None and connection.execute(query, (namespace, id)).fetchone() is None:
            wrong.append((namespace, node))
    return rows, wrong


def _forget(transaction: Transaction, namespace: str, node: Node) -> None:
    if _absent(transaction.connection, [(namespace, node)])[1]:
        edges.forget(transaction.connection, namespace, node)
        transaction.deletion = True
