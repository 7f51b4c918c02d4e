"""The sweep of records: what the mark did not reach goes, in short transactions.

survey    a read snapshot of everything, marked: candidates. It holds up nobody.
sweep     a write transaction that proves each candidate dead again, from the candidates backwards,
          so its cost grows with the garbage and not with the store, and removes the records.
          Tombstones written along say what back ends are to remove.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from carina.sqlite import now, to_time
from metadatad import blobs, edges, gc, images, leases, rpc, snaprows
from metadatad.columns import unpack
from metadatad.edges import Node
from metadatad.gc import Mark
from metadatad.records import Transaction

CHUNK: Final = 2_000
"""Objects removed in one transaction at the most."""

OBJECTS: Final = (
    "SELECT 'content/' || digest FROM blobs WHERE namespace = ?1 UNION ALL "
    "SELECT 'snapshots/' || snapshotter || '/' || key FROM snapshots WHERE namespace = ?1 UNION ALL "
    "SELECT 'ingests/' || ref FROM ingests WHERE namespace = ?1 UNION ALL "
    "SELECT 'images/' || name FROM images WHERE namespace = ?1 UNION ALL "
    "SELECT 'leases/' || id FROM leases WHERE namespace = ?1"
)
"""Everything that can be collected."""
_ROOTS: Final = (
    "SELECT 'containers/' || id FROM containers WHERE namespace = ?1 UNION ALL "
    "SELECT 'sandboxes/' || id FROM sandboxes WHERE namespace = ?1 UNION ALL "
    "SELECT 'images/' || name FROM images WHERE namespace = ?1 AND NOT EXISTS (SELECT 1 FROM pins "
    " WHERE pins.namespace = ?1 AND node = 'images/' || name AND pins.kind = 'expire' AND until < ?2) UNION ALL "
    "SELECT 'leases/' || id FROM leases WHERE namespace = ?1 AND NOT EXISTS (SELECT 1 FROM pins "
    " WHERE pins.namespace = ?1 AND node = 'leases/' || id AND pins.kind = 'expire' AND until < ?2) UNION ALL "
    "SELECT 'ingests/' || ref FROM ingests WHERE namespace = ?1 AND expires_at >= ?2 UNION ALL "
    "SELECT node FROM pins WHERE namespace = ?1 AND (kind = 'root' OR until >= ?2) "
    " AND (node LIKE 'content/%' OR node LIKE 'snapshots/%')"
)
"""Everything that is kept for its own sake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """What a survey found in one namespace."""

    namespace: str
    live: Mark
    candidates: list[Node]
    """Snapshots that stand on others come before those."""


@dataclass(slots=True)
class Swept:
    """What a sweep removed."""

    objects: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Number by type: `content`, `ingest`, `image`, `lease`, `snapshot/NAME`."""
    bytes: int = 0
    content: list[tuple[str, str]] = field(default_factory=list)
    """Namespace and digest of the blobs whose record went."""

    def add(self, other: "Swept") -> None:
        for type, count in other.objects.items():
            self.objects[type] += count
        self.bytes += other.bytes
        self.content += other.content


def survey(connection: sqlite3.Connection) -> list[Garbage]:
    """Mark every namespace."""
    moment = now()
    names = [name for (name,) in connection.execute("SELECT name FROM namespaces ORDER BY name")]
    found = (survey_namespace(connection, name, moment) for name in names)
    return [garbage for garbage in found if garbage.candidates]


def survey_namespace(connection: sqlite3.Connection, namespace: str, moment: int) -> Garbage:
    rows = connection.execute(
        "SELECT source, destination, kind, condition FROM edges WHERE namespace = ?", (namespace,)
    )
    references = references_of(connection, namespace, rows, moment)
    live = gc.mark(roots(connection, namespace, moment), references)
    objects = (node for (node,) in connection.execute(OBJECTS, (namespace,)))
    dead = [node for node in objects if node not in live]
    return Garbage(namespace=namespace, live=live, candidates=gc.children_first(dead, references))


def roots(connection: sqlite3.Connection, namespace: str, moment: int) -> set[Node]:
    """Everything in the namespace that is kept for its own sake, and what calls under way need."""
    result = {node for (node,) in connection.execute(_ROOTS, (namespace, moment))}
    under_way = connection.execute(
        "SELECT snapshotter, key, details ->> 'parent', details ->> 'source' FROM intents WHERE namespace = ?",
        (namespace,),
    )
    for snapshotter, *keys in under_way:
        result.update(edges.snapshot(snapshotter, key) for key in keys if key)
    return result


def sweep(transaction: Transaction, garbage: Garbage, candidates: Sequence[Node]) -> Swept:
    """Remove the records of candidates that are still dead."""
    swept = Swept()
    dead = prove(transaction.connection, garbage, candidates)
    for node in candidates:
        if node in dead:
            _remove(transaction, garbage.namespace, node, swept)
    return swept


def prove(connection: sqlite3.Connection, garbage: Garbage, candidates: Iterable[Node]) -> set[Node]:
    """Those of the candidates that nothing keeps now.

    Whatever leads to them is searched backwards. What the survey found alive counts as alive still: if it has died
    since, the next collection finds that.
    """
    candidates = list(candidates)
    moment = now()
    alive = roots(connection, garbage.namespace, moment)
    rows: list[tuple[Node, Node, str, str]] = []
    seen, todo = set(candidates), list(candidates)
    while todo:
        node = todo.pop()
        for row in connection.execute(
            "SELECT source, destination, kind, condition FROM edges WHERE namespace = ? AND destination = ?",
            (garbage.namespace, node),
        ):
            rows.append(row)
            source = row[0]
            if source in garbage.live.fully:
                alive.add(source)
            elif source not in seen:
                seen.add(source)
                todo.append(source)
    references = references_of(connection, garbage.namespace, rows, moment)
    near = seen | {row[0] for row in rows}
    kept = gc.mark(alive & near, references, flat_roots=garbage.live.flatly & seen)
    return {node for node in candidates if node not in kept}


def next_expiry(connection: sqlite3.Connection) -> int | None:
    """When the next pin or ingest expires that has not yet: the moment of the next collection at the latest."""
    row = connection.execute(
        "SELECT min(moment) FROM (SELECT min(until) AS moment FROM pins WHERE until >= ?1 "
        "UNION ALL SELECT min(expires_at) FROM ingests WHERE expires_at >= ?1)",
        (now(),),
    ).fetchone()
    moment: int | None = row[0]
    return moment


def references_of(
    connection: sqlite3.Connection,
    namespace: str,
    rows: Iterable[tuple[Node, Node, str, str]],
    moment: int,
) -> Mapping[Node, Sequence[tuple[Node, str]]]:
    """Edges by their source, without conditional ones whose condition does not hold."""
    result: dict[Node, list[tuple[Node, str]]] = defaultdict(list)
    for source, destination, kind, condition in rows:
        if kind != "cond" or edges.holds(condition, _used_at(connection, namespace, source), to_time(moment)):
            result[source].append((destination, kind))
    return result


def _used_at(connection: sqlite3.Connection, namespace: str, node: Node) -> datetime | None:
    _, snapshotter, key = node.split("/", 2)
    row = connection.execute(
        "SELECT labels FROM snapshots WHERE namespace = ? AND snapshotter = ? AND key = ?",
        (namespace, snapshotter, key),
    ).fetchone()
    stated = {} if row is None else unpack(row[0])
    moments = [edges.parse_time(value) for key, value in stated.items() if key.startswith(edges.USED_AT)]
    return max(filter(None, moments), default=None)


def _remove(transaction: Transaction, namespace: str, node: Node, swept: Swept) -> None:
    connection = transaction.connection
    type, _, rest = node.partition("/")
    if type == "content":
        info = blobs.find(connection, namespace, rest)
        if info is not None and blobs.discard(connection, namespace, rest, info.size):
            swept.bytes += info.size
        swept.content.append((namespace, rest))
    elif type == "snapshots":
        snapshotter, _, key = rest.partition("/")
        snaprows.discard(connection, namespace, snapshotter, key)
        transaction.emit(namespace, "/snapshot/remove", rpc.snapshot_remove(key, snapshotter))
        type = f"snapshot/{snapshotter}"
    elif type == "ingests":
        blobs.discard_ingest(connection, namespace, rest)
        type = "ingest"
    elif type == "images":
        images.discard(connection, namespace, rest)
        transaction.emit(namespace, "/images/delete", rpc.image_delete(rest))
        type = "image"
    else:
        leases.discard(connection, namespace, rest)
        type = "lease"
    swept.objects[type] += 1
