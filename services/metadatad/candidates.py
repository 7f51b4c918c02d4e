"""What may have become garbage (the table `candidates`, which triggers write), and which of it has."""

import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from metadatad import gc
from metadatad.edges import Node
from metadatad.liveness import Liveness

BATCH: Final = 1_000
"""Candidates that are looked at in one read."""
MOST: Final = 5_000
"""Dead nodes after which the rest is left to the next read."""


@dataclass(slots=True)
class Examined:
    """What is to be done about a batch of candidates."""

    rows: int = 0
    """Number of candidates."""
    settled: list[int] = field(default_factory=list)
    """Ids of those that something keeps, and that no garbage follows from."""
    lapses: list[tuple[str, Node, int]] = field(default_factory=list)
    """Namespace and node of those to look at again, and from which moment on."""
    dead: dict[str, list[Node]] = field(default_factory=dict)
    """By namespace: candidates that nothing keeps and everything that goes with them, referrers first."""
    more: bool = False
    """Whether not everything could be looked at."""


def newest(connection: sqlite3.Connection) -> int:
    """The id of the candidate that was noted last."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'candidates'").fetchone()
    return 0 if row is None else int(row[0])


def examine(connection: sqlite3.Connection, moment: int) -> Examined:
    """Look at candidates that are due at that moment."""
    rows = connection.execute(
        "SELECT id, namespace, node FROM candidates WHERE due <= ? ORDER BY due, id LIMIT ?", (moment, BATCH)
    ).fetchall()
    result = Examined(rows=len(rows), more=len(rows) == BATCH)
    found: dict[str, list[tuple[int, Node]]] = defaultdict(list)
    for id, namespace, node in rows:
        found[namespace].append((id, node))
    for namespace, candidates in found.items():
        _examine(connection, namespace, candidates, moment, result)
    return result


def _examine(
    connection: sqlite3.Connection, namespace: str, candidates: list[tuple[int, Node]], moment: int, result: Examined
) -> None:
    liveness = Liveness(connection, namespace, moment)
    references: dict[Node, list[tuple[Node, gc.Kind]]] = {}
    flat: set[Node] = set()
    """Alive themselves; what they refer to may be dead."""
    todo = list(dict.fromkeys(node for _, node in candidates))
    while todo and len(references) < MOST:
        node = todo.pop()
        if node in references or node in flat or liveness.is_fully_alive(node):
            continue
        found = refers(connection, namespace, node)
        todo += [destination for destination, _ in found]
        if liveness.is_alive(node):
            flat.add(node)
        else:
            references[node] = found
    left = set(todo)
    result.more = result.more or bool(left)
    for id, node in candidates:
        if node not in references and node not in left and not (left and node in flat):
            result.settled.append(id)
            result.lapses += [(namespace, node, due) for due in liveness.lapses(node)]
    if references:
        result.dead[namespace] = gc.referrers_first(references, references)


def refers(connection: sqlite3.Connection, namespace: str, node: Node) -> list[tuple[Node, gc.Kind]]:
    """What a node refers to, whether or not conditions hold."""
    rows = connection.execute(
        "SELECT destination, kind FROM edges WHERE namespace = ? AND source = ?", (namespace, node)
    )
    return rows.fetchall()


def settle(connection: sqlite3.Connection, examined: Examined) -> None:
    """Drop the candidates that were found alive, but for those that were noted again since."""
    connection.executemany("DELETE FROM candidates WHERE id = ?", [(id,) for id in examined.settled])
    note(connection, [(namespace, node, "lapse", due) for namespace, node, due in examined.lapses])


def note(connection: sqlite3.Connection, rows: Iterable[tuple[str, Node, str, int]]) -> None:
    """Note candidates: namespace, node, reason, and the moment from which on to look at them."""
    connection.executemany("INSERT INTO noted (namespace, node, reason, due) VALUES (?, ?, ?, ?)", rows)


def forget(connection: sqlite3.Connection, namespace: str, nodes: Iterable[Node], moment: int) -> None:
    """Drop everything noted of nodes that are no more, but for what is due after that moment."""
    connection.executemany(
        "DELETE FROM candidates WHERE namespace = ? AND node = ? AND due <= ?",
        [(namespace, node, moment) for node in nodes],
    )


def forget_loss(connection: sqlite3.Connection, namespace: str, nodes: Iterable[Node]) -> None:
    """Drop that nodes have lost something: they are alive all the same, and all that they refer to."""
    connection.executemany(
        "DELETE FROM candidates WHERE namespace = ? AND node = ? AND reason = 'lost' AND due = 0",
        [(namespace, node) for node in nodes],
    )


def next_due(connection: sqlite3.Connection, moment: int) -> int | None:
    """When the next candidate is to be looked at that was not due at that moment; None without one."""
    row = connection.execute("SELECT min(due) FROM candidates WHERE due > ?", (moment,)).fetchone()
    found: int | None = row[0]
    return found


def waiting(connection: sqlite3.Connection, moment: int) -> int:
    """Number of candidates that are due."""
    count: int = connection.execute("SELECT count(*) FROM candidates WHERE due <= ?", (moment,)).fetchone()[0]
    return count


def since(connection: sqlite3.Connection, namespace: str, node: Node, moment: int) -> int | None:
    """When a node was noted last; where a moment made it a candidate, that, if it came later."""
    found: int | None = connection.execute(
        "SELECT max(max(due - 1, noted_at)) FROM candidates WHERE namespace = ? AND node = ? AND due <= ?",
        (namespace, node, moment),
    ).fetchone()[0]
    return found
