"""The full mark: everything from the roots on, as one recursive query, which holds no lock of the interpreter.

It checks what follows from candidates alone, and finds garbage that nothing has noted: after a migration, and where
something is wrong. It runs in slices, on a connection of its own, and is in no hurry.
"""

import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from carina.sqlite import to_time
from metadatad import candidates, edges, roots
from metadatad.edges import Node
from metadatad.liveness import used_at

MOST: Final = 50_000
"""Objects that one check finds at the most."""
SLICE: Final = 20_000
"""Steps of SQLite's machine between two pauses, about a millisecond."""
LONGEST_PAUSE: Final = 0.02

OBJECTS: Final = (
    "SELECT 'content/' || digest AS node FROM blobs WHERE namespace = ?1 UNION ALL "
    "SELECT 'snapshots/' || snapshotter || '/' || key FROM snapshots WHERE namespace = ?1 UNION ALL "
    "SELECT 'ingests/' || ref FROM ingests WHERE namespace = ?1 UNION ALL "
    "SELECT 'images/' || name FROM images WHERE namespace = ?1 UNION ALL "
    "SELECT 'leases/' || id FROM leases WHERE namespace = ?1"
)
"""Everything in a namespace (?1) that can be collected."""

_DEAD: Final = f"""
WITH RECURSIVE alive (node, flat) AS (
    SELECT node, 0 FROM ({roots.ALL}) UNION SELECT value, 0 FROM json_each(?3)
    UNION
    SELECT edges.destination, flat OR edges.kind = 'flat'
    FROM alive JOIN edges ON edges.namespace = ?1 AND edges.source = alive.node
    WHERE CASE WHEN flat THEN edges.kind = 'target' AND edges.source GLOB 'images/*'
                              OR edges.kind = 'parent' AND edges.source GLOB 'snapshots/*'
               ELSE edges.kind <> 'cond' OR condition_holds(edges.source, edges.condition) END
)
SELECT node, 0 FROM ({OBJECTS}) WHERE node NOT IN (SELECT node FROM alive)
UNION ALL
SELECT node, 1 FROM (SELECT DISTINCT node FROM candidates WHERE namespace = ?1 AND due <= ?2)
WHERE node NOT IN (SELECT node FROM alive WHERE NOT flat)
"""  # noqa: S608 - queries of ours


@dataclass(slots=True)
class Marked:
    """What a full mark found."""

    dead: int = 0
    """Objects that nothing keeps."""
    missed: list[tuple[str, Node]] = field(default_factory=list)
    """Namespace and node of those that do not follow from any candidate."""
    complete: bool = True


def mark(connection: sqlite3.Connection, moment: int, *, pace: bool = True) -> Marked:
    """Mark every namespace; with `pace`, leave at least half of the time to others."""
    result = Marked()
    if pace:
        connection.set_progress_handler(_Pauses(), SLICE)
    try:
        names = [name for (name,) in connection.execute("SELECT name FROM namespaces ORDER BY name")]
        for namespace in names:
            _mark(connection, namespace, moment, result)
    finally:
        connection.set_progress_handler(None, 0)
    return result


def dead(connection: sqlite3.Connection, namespace: str, moment: int) -> Iterator[tuple[Node, bool]]:
    """Objects that nothing keeps, and (marked by True) due candidates that nothing keeps fully."""
    conditions = connection.execute(
        "SELECT DISTINCT source, condition FROM edges INDEXED BY edges_stated_by_destination "
        "WHERE namespace = ? AND kind IN ('bref', 'cond') AND kind = 'cond'",
        (namespace,),
    ).fetchall()
    holding = {
        (source, condition)
        for source, condition in conditions
        if edges.holds(condition, used_at(connection, namespace, source), to_time(moment))
    }
    connection.create_function("condition_holds", 2, lambda source, condition: (source, condition) in holding)
    called = msgspec.json.encode(sorted(roots.called(connection, namespace))).decode()
    for node, candidate in connection.execute(_DEAD, (namespace, moment, called)):
        yield node, bool(candidate)


def _mark(connection: sqlite3.Connection, namespace: str, moment: int, result: Marked) -> None:
    objects: set[Node] = set()
    noted: set[Node] = set()
    for node, candidate in dead(connection, namespace, moment):
        if candidate:
            noted.add(node)
        elif len(objects) < MOST:
            objects.add(node)
        else:
            result.complete = False
    result.dead += len(objects)
    if objects - noted:
        following = _following(connection, namespace, noted)
        result.missed += [(namespace, node) for node in sorted(objects - following)]


def _following(connection: sqlite3.Connection, namespace: str, noted: set[Node]) -> set[Node]:
    """Candidates and what can be reached from them: what of that is dead goes with them."""
    seen, todo = set(noted), list(noted)
    while todo:
        for node, _ in candidates.refers(connection, namespace, todo.pop()):
            if node not in seen:
                seen.add(node)
                todo.append(node)
    return seen


class _Pauses:
    """Sleeps as long as the slice before took, so that no processor is kept busy."""

    def __init__(self) -> None:
        self._resumed = time.monotonic()

    def __call__(self) -> int:
        time.sleep(min(time.monotonic() - self._resumed, LONGEST_PAUSE))
        self._resumed = time.monotonic()
        return 0
