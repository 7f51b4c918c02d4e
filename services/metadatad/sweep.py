"""The sweep of records: what was found dead goes, in short transactions.

Each transaction proves every node dead again, from the node backwards, so its cost grows with the garbage and not
with the store. Tombstones written along say what back ends are to remove. What the removed referred to becomes a
candidate in the same transaction, so a crash between two of them loses nothing.
"""

import math
import time
from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Final

from carina import faults
from metadatad import blobs, candidates, images, leases, rpc, snaprows
from metadatad.edges import Node
from metadatad.liveness import Liveness
from metadatad.records import Transaction

CHUNK: Final = 256
"""Nodes removed in one transaction at the most."""
SECONDS: Final = 0.02
"""How long one transaction goes on: writers wait for little more than that, and for the commit."""
EFFORT: Final = 8
"""Reads that it may take inside a transaction to find something alive."""


@dataclass(slots=True)
class Swept:
    """What a sweep removed."""

    nodes: int = 0
    """How many of the nodes were dealt with."""
    objects: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Number by type: `content`, `ingest`, `image`, `lease`, `snapshot/NAME`."""
    bytes: int = 0
    content: list[tuple[str, str]] = field(default_factory=list)
    """Namespace and digest of the blobs whose record went."""

    def add(self, other: "Swept") -> None:
        for type, count in other.objects.items():
            self.objects[type] += count
        self.nodes += other.nodes
        self.bytes += other.bytes
        self.content += other.content


def sweep(
    transaction: Transaction,
    namespace: str,
    nodes: Sequence[Node],
    moment: int,
    *,
    doomed: Set[Node] = frozenset(),
    seconds: float = math.inf,
) -> Swept:
    """Remove the records of nodes that nothing keeps at that moment still, as many as that time allows, or one.

    What those referred to is a candidate then, unless it is found fully alive without much ado; of the `doomed` that
    is not asked.
    """
    connection, swept, end = transaction.connection, Swept(), time.monotonic() + seconds
    liveness = Liveness(connection, namespace, moment)
    beyond: set[Node] = set()
    dead: list[Node] = []
    for node in nodes:
        if swept.nodes and time.monotonic() > end:
            break
        swept.nodes += 1
        if liveness.is_alive(node):
            continue
        dead.append(node)
        beyond.update(destination for destination, _ in candidates.refers(connection, namespace, node))
        type = _remove(transaction, namespace, node, swept)
        if type:
            swept.objects[type] += 1
        kept = candidates.refers(connection, namespace, node)
        candidates.note(connection, [(namespace, other, "lost", 0) for other, _ in kept])
    candidates.forget(connection, namespace, dead, moment)
    beyond.difference_update(dead, doomed)
    alive = [node for node in beyond if liveness.is_fully_alive(node, EFFORT)]
    candidates.forget_loss(connection, namespace, alive)
    faults.point("metadatad.collection.buried")
    return swept


def _remove(transaction: Transaction, namespace: str, node: Node, swept: Swept) -> str:
    """Remove a node's record, if it has one; its type, or nothing."""
    connection = transaction.connection
    kind, _, id = node.partition("/")
    if kind == "content":
        info = blobs.find(connection, namespace, id)
        if info is None:
            return ""
        if blobs.discard(connection, namespace, id, info.size):
            swept.bytes += info.size
        swept.content.append((namespace, id))
        return "content"
    if kind == "snapshots":
        snapshotter, _, key = id.partition("/")
        if snaprows.find(connection, namespace, snapshotter, key) is None:
            return ""
        snaprows.discard(connection, namespace, snapshotter, key)
        transaction.emit(namespace, "/snapshot/remove", rpc.snapshot_remove(key, snapshotter))
        return f"snapshot/{snapshotter}"
    if kind == "ingests":
        if blobs.find_ingest(connection, namespace, id) is None:
            return ""
        blobs.discard_ingest(connection, namespace, id)
        return "ingest"
    return _remove_named(transaction, namespace, kind, id)


def _remove_named(transaction: Transaction, namespace: str, kind: str, id: str) -> str:
    connection = transaction.connection
    if kind == "images" and images.discard(connection, namespace, id):
        transaction.emit(namespace, "/images/delete", rpc.image_delete(id))
        return "image"
    if kind == "leases" and leases.discard(connection, namespace, id):
        return "lease"
    return ""
