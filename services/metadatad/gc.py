"""The mark: what can be reached from the roots. Plain functions over nodes and edges, one namespace at a time.

A *flat* reference keeps its destination and, from there, only what that can't be without:
the target of an image and the parents of a snapshot.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from metadatad.edges import Node

Kind = str
References = Mapping[Node, Sequence[tuple[Node, Kind]]]
"""What a node refers to, with the kind of each edge (see the table `edges`)."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What is alive. A node that is alive only flatly does not keep everything that it refers to."""

    fully: frozenset[Node]
    flatly: frozenset[Node]

    def __contains__(self, node: object) -> bool:
        return node in self.fully or node in self.flatly


def mark(roots: Iterable[Node], references: References, *, flat_roots: Iterable[Node] = ()) -> Mark:
    """The roots and everything that they keep."""
    fully: set[Node] = set()
    flatly: set[Node] = set()
    todo = [(root, False) for root in roots] + [(root, True) for root in flat_roots]
    while todo:
        node, flat = todo.pop()
        if node in fully or (flat and node in flatly):
            continue
        (flatly if flat else fully).add(node)
        for other, kind in references.get(node, ()):
            if not flat:
                todo.append((other, kind == "flat"))
            elif is_essential(node, kind):
                todo.append((other, True))
    return Mark(frozenset(fully), frozenset(flatly))


def is_essential(node: Node, kind: Kind) -> bool:
    """Whether a flat reference to `node` keeps what it refers to by an edge of this kind."""
    return (kind == "target" and node.startswith("images/")) or (kind == "parent" and node.startswith("snapshots/"))


def children_first(nodes: Iterable[Node], references: References) -> list[Node]:
    """Nodes in an order in which no snapshot comes before one that stands on it."""
    waiting = set(nodes)
    result: list[Node] = []
    children: dict[Node, int] = dict.fromkeys(waiting, 0)
    for node in waiting:
        for parent, kind in references.get(node, ()):
            if kind == "parent" and parent in waiting:
                children[parent] += 1
    ready = [node for node in sorted(waiting) if not children[node]]
    while ready:
        node = ready.pop()
        result.append(node)
        waiting.discard(node)
        for parent, kind in references.get(node, ()):
            if kind == "parent" and parent in waiting:
                children[parent] -= 1
                if not children[parent]:
                    ready.append(parent)
    return result + sorted(waiting)
