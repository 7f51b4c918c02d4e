"""What is alive in one namespace at one moment, found out backwards: from a node to whatever keeps it.

The search reads only as much as an answer needs, and stops at the first root: a layer that fifty thousand images share
is proven alive by the first of them. What it has found out serves the next answers.
"""

import sqlite3
from collections import defaultdict
from datetime import datetime
from typing import Final

from carina.sqlite import to_time
from metadatad import edges, gc
from metadatad.columns import unpack
from metadatad.edges import Node
from metadatad.roots import called, is_root

PAGE: Final = 64
"""References to a node that are read at a time."""

_Position = tuple[str, str, str]
"""The last reference to a node that was read: source, kind, condition."""
_START: Final[_Position] = ("", "", "")


class Liveness:
    """Answers for one connection, as long as nothing but what is dead changes in the database."""

    def __init__(self, connection: sqlite3.Connection, namespace: str, moment: int) -> None:
        self._connection = connection
        self._namespace = namespace
        self._moment = moment
        self._called = called(connection, namespace)
        self._fully: set[Node] = set()
        self._flatly: set[Node] = set()
        self._final: set[Node] = set()
        """Nodes of which everything is known that could keep them."""
        self._met: set[Node] = set()
        self._read: dict[Node, _Position | None] = {}
        """How far the references to a node were read; None: to the end."""
        self._sources: dict[Node, list[Node]] = defaultdict(list)
        self._destinations: dict[Node, list[tuple[Node, gc.Kind]]] = defaultdict(list)
        self._used: dict[Node, list[datetime]] = {}

    def is_alive(self, node: Node) -> bool:
        """Whether a root keeps the node."""
        self._search(node, fully=False)
        return self._known(node)

    def is_fully_alive(self, node: Node, effort: int = -1) -> bool:
        """Whether a root keeps the node, and not only flatly: then all that it refers to is kept as well.

        False also where as many reads as `effort` allows do not tell; there is no limit where that is negative.
        """
        self._search(node, fully=True, effort=effort)
        return node in self._fully

    def _search(self, node: Node, *, fully: bool, effort: int = -1) -> None:
        """Look for what keeps a node, until that is found or the effort is spent."""
        self._meet(node)
        seen, entered = {node}, set()
        todo = [node]
        while todo and not (node in self._fully or (not fully and node in self._flatly)):
            if not effort:
                return
            effort -= 1
            top = todo.pop()
            if top in self._fully or top in self._final:
                continue
            before = [] if top in entered else self._sources[top]
            entered.add(top)
            found = [source for source in (*before, *self._page(top)) if source not in seen]
            if self._read.get(top, _START) is not None:
                todo.append(top)
            seen.update(found)
            todo += found
        if not todo:
            self._final |= seen

    def lapses(self, node: Node) -> list[int]:
        """From which moments on conditional references to a node hold no more that hold now."""
        rows = self._connection.execute(
            "SELECT source, condition FROM edges INDEXED BY edges_stated_by_destination "
            "WHERE namespace = ? AND destination = ? AND kind IN ('bref', 'cond') AND kind = 'cond'",
            (self._namespace, node),
        )
        found = [edges.lapses(condition, self._used_at(source)) for source, condition in rows]
        return [max(moment, self._moment + 1) for moment in found if moment is not None and moment > self._moment]

    def _known(self, node: Node) -> bool:
        return node in self._fully or node in self._flatly

    def _page(self, node: Node) -> list[Node]:
        """Read on in what refers to a node, as far as it is worth it."""
        position = self._read.get(node, _START)
        if position is None:
            return []
        rows = self._connection.execute(
            "SELECT source, kind, condition FROM edges WHERE namespace = ? AND destination = ? "
            "AND (source, kind, condition) > (?, ?, ?) ORDER BY source, kind, condition LIMIT ?",
            (self._namespace, node, *position, PAGE),
        ).fetchall()
        self._read[node] = None
        found = []
        for number, row in enumerate(rows, 1):
            source, kind, condition = row
            if kind == "cond" and not edges.holds(condition, self._used_at(source), to_time(self._moment)):
                continue
            found.append(source)
            self._link(source, node, kind)
            if node in self._fully or number == PAGE:
                self._read[node] = row
                break
        return found

    def _link(self, source: Node, node: Node, kind: gc.Kind) -> None:
        self._sources[node].append(source)
        self._destinations[source].append((node, kind))
        self._meet(source)
        if source in self._fully:
            self._spread(node, flat=kind == "flat")
        elif source in self._flatly and gc.is_essential(source, kind):
            self._spread(node, flat=True)

    def _meet(self, node: Node) -> None:
        if node not in self._met:
            self._met.add(node)
            if node in self._called or is_root(self._connection, self._namespace, node, self._moment):
                self._spread(node, flat=False)

    def _spread(self, node: Node, *, flat: bool) -> None:
        """A node is alive, and so is what it keeps of what was read so far."""
        todo = [(node, flat)]
        while todo:
            node, flat = todo.pop()
            if node in self._fully or (flat and node in self._flatly):
                continue
            (self._flatly if flat else self._fully).add(node)
            for other, kind in self._destinations.get(node, ()):
                if not flat:
                    todo.append((other, kind == "flat"))
                elif gc.is_essential(node, kind):
                    todo.append((other, True))

    def _used_at(self, node: Node) -> list[datetime]:
        if node not in self._used:
            self._used[node] = used_at(self._connection, self._namespace, node)
        return self._used[node]


def used_at(connection: sqlite3.Connection, namespace: str, node: Node) -> list[datetime]:
    """When a snapshot says that it was used; what is no snapshot was not."""
    kind, _, rest = node.partition("/")
    snapshotter, _, key = rest.partition("/")
    if kind != "snapshots":
        return []
    row = connection.execute(
        "SELECT labels FROM snapshots WHERE namespace = ? AND snapshotter = ? AND key = ?",
        (namespace, snapshotter, key),
    ).fetchone()
    return [] if row is None else edges.used_at(unpack(row[0]))
