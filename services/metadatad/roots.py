"""What is kept for its own sake at a moment: all of it in a namespace, or whether one node is."""

import sqlite3
from collections.abc import Mapping
from typing import Final

from metadatad import edges
from metadatad.edges import Node

ALL: Final = (
    "SELECT 'containers/' || id AS node FROM containers WHERE namespace = ?1 UNION ALL "
    "SELECT 'sandboxes/' || id FROM sandboxes WHERE namespace = ?1 UNION ALL "
    "SELECT 'images/' || name FROM images WHERE namespace = ?1 AND NOT EXISTS (SELECT 1 FROM pins "
    " WHERE pins.namespace = ?1 AND node = 'images/' || name AND pins.kind = 'expire' AND until < ?2) UNION ALL "
    "SELECT 'leases/' || id FROM leases WHERE namespace = ?1 AND NOT EXISTS (SELECT 1 FROM pins "
    " WHERE pins.namespace = ?1 AND node = 'leases/' || id AND pins.kind = 'expire' AND until < ?2) UNION ALL "
    "SELECT 'ingests/' || ref FROM ingests WHERE namespace = ?1 AND expires_at >= ?2 UNION ALL "
    "SELECT node FROM pins WHERE namespace = ?1 AND (kind = 'root' OR until >= ?2) "
    " AND (node LIKE 'content/%' OR node LIKE 'snapshots/%')"
)
"""The roots of a namespace (?1) at a moment (?2), but for those of `called`."""

_EXPIRED: Final = (
    "SELECT 1 FROM pins WHERE namespace = :namespace AND node = :node AND kind = 'expire' AND until < :moment"
)
_PINNED: Final = (
    "SELECT 1 FROM pins WHERE namespace = :namespace AND node = :node AND (kind = 'root' OR until >= :moment)"
)
_UNEXPIRED: Final = f"NOT EXISTS ({_EXPIRED})"
_ONE: Final[Mapping[str, str]] = {
    "containers": "SELECT 1 FROM containers WHERE namespace = :namespace AND id = :id",
    "sandboxes": "SELECT 1 FROM sandboxes WHERE namespace = :namespace AND id = :id",
    "images": f"SELECT 1 FROM images WHERE namespace = :namespace AND name = :id AND {_UNEXPIRED}",  # noqa: S608
    "leases": f"SELECT 1 FROM leases WHERE namespace = :namespace AND id = :id AND {_UNEXPIRED}",  # noqa: S608
    "ingests": "SELECT 1 FROM ingests WHERE namespace = :namespace AND ref = :id AND expires_at >= :moment",
    "content": _PINNED,
    "snapshots": _PINNED,
}


def roots(connection: sqlite3.Connection, namespace: str, moment: int) -> set[Node]:
    """Everything in the namespace that is kept for its own sake."""
    return {node for (node,) in connection.execute(ALL, (namespace, moment))} | called(connection, namespace)


def called(connection: sqlite3.Connection, namespace: str) -> set[Node]:
    """What calls to snapshotters that are under way need."""
    rows = connection.execute(
        "SELECT snapshotter, details ->> 'parent', details ->> 'source' FROM intents WHERE namespace = ?", (namespace,)
    )
    return {edges.snapshot(snapshotter, key) for snapshotter, *keys in rows for key in keys if key}


def is_root(connection: sqlite3.Connection, namespace: str, node: Node, moment: int) -> bool:
    """Whether `roots` has the node, but for `called`."""
    kind, _, id = node.partition("/")
    query = _ONE.get(kind)
    names = {"namespace": namespace, "moment": moment, "node": node, "id": id}
    return query is not None and connection.execute(query, names).fetchone() is not None
