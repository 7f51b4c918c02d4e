"""The reference graph as rows: which object keeps which, as labels and records state it.

Every store writes the edges and pins of a record in the transaction that writes the record (`state`),
and takes them away in the transaction that removes it (`forget`). The schema lists the kinds of edges.
"""

import math
import re
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from carina import labels as names
from carina.sqlite import from_time

Node = str
"""`content/DIGEST`, `snapshots/SNAPSHOTTER/KEY`, `images/NAME`, `containers/ID`, `sandboxes/ID`, `leases/ID` or
`ingests/REF`, in one namespace."""

BACK_REFERENCE: Final = "containerd.io/gc.bref."
CONDITIONAL: Final = "containerd.io/gc.cond.snapshot"
USED_AT: Final = "containerd.io/gc.cond.value-usedat"

_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_LONGEST: Final = 2**63 / 1e9
"""Seconds in the longest duration that Go can hold."""
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d([.,]\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|us|µs|ns|m|s)")


@dataclass(frozen=True, slots=True)
class Edge:
    """`source` keeps `destination`."""

    source: Node
    destination: Node
    kind: str
    condition: str = ""


@dataclass(frozen=True, slots=True)
class Pin:
    """What an object's labels say of the object itself."""

    kind: str
    """`root` or `expire`."""
    until: int | None = None


def content(digest: str) -> Node:
    return f"content/{digest}"


def snapshot(snapshotter: str, key: str) -> Node:
    return f"snapshots/{snapshotter}/{key}"


def image(name: str) -> Node:
    return f"images/{name}"


def container(id: str) -> Node:
    return f"containers/{id}"


def sandbox(id: str) -> Node:
    return f"sandboxes/{id}"


def lease(id: str) -> Node:
    return f"leases/{id}"


def ingest(ref: str) -> Node:
    return f"ingests/{ref}"


def resource(type: str, id: str) -> Node:
    """The node of a lease's resource: its type is `content`, `ingests`, `images` or `snapshots/SNAPSHOTTER`."""
    return f"{type}/{id}"


def of_labels(node: Node, labels: Mapping[str, str]) -> list[Edge]:
    """The edges that an object's labels state. A label that can't be understood is ignored, as containerd does.

    Labels of leases state none, and only content and images refer to something under a condition.
    """
    result: list[Edge] = []
    if node.startswith("leases/"):
        return result
    for key, value in labels.items():
        if not key.startswith("containerd.io/gc."):
            continue
        if key.startswith("containerd.io/gc.ref."):
            other = _named(key.removeprefix("containerd.io/gc.ref."), value)
            if other is not None:
                result.append(Edge(node, other, "ref"))
        elif key.startswith(BACK_REFERENCE):
            other = _named(key.removeprefix(BACK_REFERENCE), value, containers=True)
            if other is not None:
                result.append(Edge(other, node, "bref"))
        elif key.startswith(CONDITIONAL) and node.startswith(("content/", "images/")):
            result.extend(_conditional(node, key, value))
    return result


def pins_of_labels(labels: Mapping[str, str]) -> list[Pin]:
    """`gc.root` (or any label with that prefix) and `gc.expire`; an expiry that is no RFC 3339 time is ignored."""
    result = []
    if any(key.startswith(names.GC_ROOT) for key in labels):
        result.append(Pin("root"))
    expiry = labels.get(names.GC_EXPIRE)
    if expiry is not None:
        moment = parse_time(expiry)
        if moment is not None:
            result.append(Pin("expire", from_time(moment)))
    return result


def state(
    connection: sqlite3.Connection,
    namespace: str,
    node: Node,
    labels: Mapping[str, str],
    *,
    references: Iterable[tuple[Node, str]] = (),
) -> None:
    """Write what an object states, in place of what it stated before.

    `references` are (destination, kind) pairs that come from the record rather than from labels.
    What it goes on stating is not touched, so only what is lost makes candidates for a collection.
    """
    edges = {Edge(node, destination, kind) for destination, kind in references} | set(of_labels(node, labels))
    old = _stated(connection, namespace, node)
    connection.executemany(
        "DELETE FROM edges WHERE namespace = ? AND source = ? AND destination = ? AND kind = ? AND condition = ?",
        [(namespace, edge.source, edge.destination, edge.kind, edge.condition) for edge in old - edges],
    )
    connection.executemany(
        "INSERT OR IGNORE INTO edges (namespace, source, destination, kind, condition) VALUES (?, ?, ?, ?, ?)",
        [(namespace, edge.source, edge.destination, edge.kind, edge.condition) for edge in edges - old],
    )
    _pin(connection, namespace, node, set(pins_of_labels(labels)))


def _stated(connection: sqlite3.Connection, namespace: str, node: Node) -> set[Edge]:
    """The edges that an object states. Those of a lease go to its resources, which come and go on their own."""
    if node.startswith("leases/"):
        return set()
    rows = connection.execute(
        "SELECT source, destination, kind, condition FROM edges WHERE namespace = ?1 AND source = ?2 "
        "AND kind IN ('target', 'parent', 'ref', 'flat') UNION ALL "
        "SELECT source, destination, kind, condition FROM edges INDEXED BY edges_stated_by_destination "
        "WHERE namespace = ?1 AND destination = ?2 AND kind IN ('bref', 'cond')",
        (namespace, node),
    )
    return {Edge(*row) for row in rows}


def _pin(connection: sqlite3.Connection, namespace: str, node: Node, pins: set[Pin]) -> None:
    rows = connection.execute("SELECT kind, until FROM pins WHERE namespace = ? AND node = ?", (namespace, node))
    old = {Pin(*row) for row in rows}
    connection.executemany(
        "DELETE FROM pins WHERE namespace = ? AND node = ? AND kind = ?",
        [(namespace, node, pin.kind) for pin in old - pins],
    )
    connection.executemany(
        "INSERT INTO pins (namespace, node, kind, until) VALUES (?, ?, ?, ?)",
        [(namespace, node, pin.kind, pin.until) for pin in pins - old],
    )


def forget(connection: sqlite3.Connection, namespace: str, node: Node) -> None:
    """Remove every edge and pin that an object states; edges that others state towards it stay."""
    connection.execute(
        "DELETE FROM edges WHERE namespace = ? AND source = ? AND kind IN ('target', 'parent', 'ref', 'flat')",
        (namespace, node),
    )
    connection.execute(
        "DELETE FROM edges INDEXED BY edges_stated_by_destination "
        "WHERE namespace = ? AND destination = ? AND kind IN ('bref', 'cond')",
        (namespace, node),
    )
    connection.execute("DELETE FROM pins WHERE namespace = ? AND node = ?", (namespace, node))


def holds(condition: str, used: Iterable[datetime], moment: datetime) -> bool:
    """Whether a snapshot that says it was used at one of those moments satisfies `usedat<24h` or `usedat>24h`."""
    duration = parse_duration(condition[7:])
    if duration is None:
        return False
    ages = ((moment - one).total_seconds() for one in used)
    return any(age < duration if condition[6] == "<" else age > duration for age in ages)


def lapses(condition: str, used: Iterable[datetime]) -> int | None:
    """From which moment on the condition holds no more; None if that is no question of time."""
    duration = parse_duration(condition[7:])
    if duration is None or condition[6] == ">":
        return None
    return max((from_time(one) + math.ceil(duration * 1_000_000) for one in used), default=None)


def used_at(labels: Mapping[str, str]) -> list[datetime]:
    """When a snapshot was used, as its labels say."""
    moments = [parse_time(value) for key, value in labels.items() if key.startswith(USED_AT)]
    return [moment for moment in moments if moment is not None]


def parse_time(text: str) -> datetime | None:
    """An RFC 3339 time; None if it is not one."""
    if not _TIME.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):  # the 31st of February, the year 0
        return None


def parse_duration(text: str) -> float | None:
    """Seconds of a duration as Go writes it (`1h30m`, `250ms`, `0`); None if it is not one."""
    sign = -1.0 if text.startswith("-") else 1.0
    body = text[1:] if text.startswith(("-", "+")) else text
    if body == "0":
        return 0.0
    parts = _PART.findall(body) if len(body) <= 100 else []
    if not parts or "".join(number + unit for number, unit in parts) != body:
        return None
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return sign * seconds if seconds <= _LONGEST else None


def _named(rest: str, value: str, *, containers: bool = False) -> Node | None:
    """What `content`, `content.x`, `content/x`, `image...`, `container...` or `snapshot.SNAPSHOTTER[/x]` refer to."""
    if rest.startswith("snapshot."):
        return snapshot(rest.removeprefix("snapshot.").partition("/")[0], value)
    kinds = [("content", content), ("image", image)] + ([("container", container)] if containers else [])
    for noun, node in kinds:
        if rest == noun or rest.startswith((f"{noun}.", f"{noun}/")):
            return node(value)
    return None


def _conditional(node: Node, key: str, value: str) -> list[Edge]:
    snapshotter = key.removeprefix(CONDITIONAL).lstrip("./").partition("/")[0]
    conditions, bar, name = value.partition("|")
    if not bar:
        return []
    return [
        Edge(snapshot(snapshotter, name), node, "cond", condition)
        for condition in conditions.split(",")
        if re.fullmatch(r"usedat[<>].+", condition) and parse_duration(condition[7:]) is not None
    ]


def weaker(node: Node, old: Mapping[str, str], new: Mapping[str, str]) -> bool:
    """Whether labels lost a reference, a pin or a use, so that something may have become garbage."""
    lost_edge = not set(of_labels(node, old)) <= set(of_labels(node, new))
    lost_use = not set(used_at(old)) <= set(used_at(new))
    return lost_edge or lost_use or not set(pins_of_labels(old)) <= set(pins_of_labels(new))
