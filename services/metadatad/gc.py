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


def referrers_first(nodes: Iterable[Node], references: References) -> list[Node]:
    """Nodes in an order in which none comes before one that refers to it, but for cycles.

    Whatever the cycles, no snapshot comes before one that stands on it.
    """
    waiting = dict.fromkeys(sorted(nodes))
    before = dict.fromkeys(waiting, 0)
    children = dict.fromkeys(waiting, 0)
    for node in waiting:
        for other, kind in references.get(node, ()):
            if other in before:
                before[other] += 1
                children[other] += kind == "parent"
    ready = [node for node in waiting if not before[node]]
    in_cycles = [node for node in waiting if before[node] and not children[node]]
    result: list[Node] = []
    while waiting:
        node = ready.pop() if ready else in_cycles.pop() if in_cycles else next(iter(waiting))
        if node not in waiting:
            continue
        del waiting[node]
        result.append(node)
        for other, kind in references.get(node, ()):
            if other not in waiting:
                continue
            before[other] -= 1
            children[other] -= kind == "parent"
            if not before[other]:
                ready.append(other)
            elif kind == "parent" and not children[other]:
                in_cycles.append(other)
    return result
