"""A plain model of what is recorded and of containerd's rules of what keeps what, beside a real database.

The model knows labels as what they mean (`Label`), not as text, and finds out what is alive by trying every rule on
everything until nothing changes. Times are hours of a clock that only the test advances.
"""

import sqlite3
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from carina.content import Info as BlobInfo
from carina.digest import Digest
from carina.leases import Resource
from carina.snapshots import Info, Kind
from carina.sqlite import from_time
from metadatad import blobs, edges, images, leases, namespaces, snaprows
from metadatad.columns import pack
from metadatad.records import Transaction
from metadatad.snaprows import Row

EPOCH = datetime(2100, 1, 1, tzinfo=UTC)
Edge = tuple[str, str, str]


def moment(hours: float) -> int:
    return from_time(EPOCH + timedelta(hours=hours))


@dataclass(frozen=True)
class Label:
    kind: str
    """`root`, `expire`, `flat`, `ref`, `bref`, `cond<`, `cond>` or `used`."""
    node: str = ""
    hours: int = 0

    def text(self, number: int) -> tuple[str, str]:
        noun, _, rest = self.node.partition("/")
        snapshotter, _, key = rest.partition("/")
        noun, value = (f"snapshot.{snapshotter}", key) if noun == "snapshots" else (noun.removesuffix("s"), rest)
        if self.kind in ("ref", "bref"):
            suffix = f"/{number}" if "snapshot" in noun else f".{number}"
            return f"containerd.io/gc.{self.kind}.{noun}{suffix}", value
        if self.kind.startswith("cond"):
            return f"containerd.io/gc.cond.{noun}/{number}", f"usedat{self.kind[-1]}{self.hours}h|{value}"
        if self.kind == "used":
            return f"containerd.io/gc.cond.value-usedat.{number}", self._time()
        if self.kind == "expire":
            return "containerd.io/gc.expire", self._time()
        return f"containerd.io/gc.{self.kind}", "true"

    def _time(self) -> str:
        return (EPOCH + timedelta(hours=self.hours)).isoformat()


Labels = frozenset[Label]


def texts(labels: Labels) -> dict[str, str]:
    ordered = sorted(labels, key=lambda label: (label.kind, label.node, label.hours))
    return dict(label.text(number) for number, label in enumerate(ordered))


@dataclass
class Space:
    """One namespace of the model: node -> its labels, and what records say beside labels."""

    records: dict[str, Labels] = field(default_factory=dict)
    references: set[Edge] = field(default_factory=set)
    """Of records and leases."""
    expiries: dict[str, int] = field(default_factory=dict)
    """Of ingests, in hours."""
    calls: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Back-end key of a call under way -> the snapshots that it needs."""

    def roots(self, hours: int) -> set[str]:
        result = {node for nodes in self.calls.values() for node in nodes}
        for node, labels in self.records.items():
            kind = node.partition("/")[0]
            expiries = [label.hours for label in labels if label.kind == "expire"]
            if kind in ("images", "leases"):
                keeps = all(expiry >= hours for expiry in expiries)
            elif kind in ("content", "snapshots"):
                keeps = any(expiry >= hours for expiry in expiries) or any(label.kind == "root" for label in labels)
            else:
                keeps = kind == "containers" or self.expiries.get(node, -1) >= hours
            if keeps:
                result.add(node)
        return result

    def edges(self, hours: int) -> set[Edge]:
        result = set(self.references)
        for node, labels in self.records.items():
            kind = node.partition("/")[0]
            if kind == "leases":
                continue
            result |= {(node, label.node, "ref") for label in labels if label.kind == "ref"}
            result |= {(label.node, node, "bref") for label in labels if label.kind == "bref"}
            if kind in ("content", "images"):
                conditions = (label for label in labels if label.kind.startswith("cond"))
                result |= {(label.node, node, "cond") for label in conditions if self._holds(label, hours)}
        return result

    def _holds(self, label: Label, hours: int) -> bool:
        ages = [hours - one.hours for one in self.records.get(label.node, ()) if one.kind == "used"]
        return any(age < label.hours if label.kind == "cond<" else age > label.hours for age in ages)

    def alive(self, hours: int) -> set[str]:
        found = {(root, False) for root in self.roots(hours)}
        stated = self.edges(hours)
        while True:
            new = set()
            for source, destination, kind in stated:
                if (source, False) in found:
                    new.add((destination, kind == "flat"))
                essential = (kind, source.partition("/")[0]) in {("target", "images"), ("parent", "snapshots")}
                if (source, True) in found and essential:
                    new.add((destination, True))
            if new <= found:
                return {node for node, _ in found}
            found |= new

    def collect(self, hours: int) -> None:
        """What a collection leaves."""
        alive = self.alive(hours)
        for node in [node for node in self.records if node not in alive and not node.startswith("containers/")]:
            self.drop(node)

    def drop(self, node: str) -> None:
        """A record goes, with what it states."""
        del self.records[node]
        self.expiries.pop(node, None)
        self.references = {edge for edge in self.references if edge[0] != node}
        if node.startswith("ingests/"):
            self.references = {edge for edge in self.references if edge[1] != node}


class World:
    """Does the same to the model and to the database."""

    def __init__(self) -> None:
        self.spaces: dict[str, Space] = {"1": Space(), "2": Space()}
        self.hours = 0
        self._made = 0

    def make(self, transaction: Transaction, namespace: str, node: str, labels: Labels, other: str = "") -> None:
        """Make a record, or give it other labels; `other` is the target or parent."""
        space, kind = self.spaces[namespace], node.partition("/")[0]
        labels = labels if kind != "ingests" else frozenset()
        namespaces.ensure(transaction.connection, namespace)
        there = node in space.records
        if kind == "leases" and there:
            return
        if kind == "snapshots" and there:  # a parent never changes
            other = next((edge[1] for edge in space.references if edge[0] == node and edge[2] == "parent"), "")
        getattr(self, f"_make_{kind}")(transaction, namespace, node, texts(labels), other, there)
        space.records[node] = labels
        if kind != "leases":
            space.references = {edge for edge in space.references if edge[0] != node}
        if other:
            space.references.add((node, other, "parent" if kind == "snapshots" else "target"))

    def remove(self, transaction: Transaction, namespace: str, node: str) -> None:
        """Remove a record as its store does."""
        connection, (kind, _, id) = transaction.connection, node.partition("/")
        if kind == "content":
            blobs.discard(connection, namespace, id, 1)
        elif kind == "snapshots":
            snaprows.discard(connection, namespace, *id.split("/", 1))
        elif kind == "images":
            images.discard(connection, namespace, id)
        elif kind == "leases":
            leases.discard(connection, namespace, id)
        elif kind == "ingests":
            blobs.discard_ingest(connection, namespace, id)
        else:
            connection.execute("DELETE FROM containers WHERE namespace = ? AND id = ?", (namespace, id))
            edges.forget(connection, namespace, node)
        self.spaces[namespace].drop(node)

    def hold(self, transaction: Transaction, namespace: str, lease: str, node: str, *, held: bool) -> None:
        """Give something to a lease, or take it from there."""
        space, resource = self.spaces[namespace], _resource(node)
        id = lease.partition("/")[2]
        flat = any(label.kind == "flat" for label in space.records[lease]) and not node.startswith("ingests/")
        edge = (lease, node, "flat" if flat else "ref")
        if held:
            leases.hold(transaction.connection, namespace, id, resource)
            space.references.add(edge)
        else:
            leases.release(transaction.connection, namespace, id, resource)
            space.references.discard(edge)

    def call(self, connection: sqlite3.Connection, namespace: str, parent: str, source: str) -> None:
        """A call to a snapshotter begins."""
        self._made += 1
        keys = {"parent": parent.rpartition("/")[2], "source": source.rpartition("/")[2]}
        connection.execute(
            "INSERT INTO intents (namespace, snapshotter, action, key, backend_key, details, created_at) "
            "VALUES (?, 's', 'commit', 'k', ?, json_object('parent', ?, 'source', ?), 0)",
            (namespace, str(self._made), keys["parent"], keys["source"]),
        )
        self.spaces[namespace].calls[str(self._made)] = tuple(node for node in (parent, source) if node)

    def end_call(self, connection: sqlite3.Connection, namespace: str) -> None:
        """The oldest call ends."""
        calls = self.spaces[namespace].calls
        if calls:
            key = next(iter(calls))
            connection.execute("DELETE FROM intents WHERE backend_key = ?", (key,))
            del calls[key]

    def _make_content(
        self, transaction: Transaction, namespace: str, node: str, stated: dict[str, str], _: str, there: bool
    ) -> None:
        digest = Digest(node.removeprefix("content/"))
        if there:
            blobs.relabel(transaction, namespace, digest, BlobInfo(digest=digest, size=1, labels=stated), ["labels"])
        else:
            blobs.record(transaction, namespace, digest, size=1, labels=stated)

    def _make_snapshots(
        self, transaction: Transaction, namespace: str, node: str, stated: dict[str, str], parent: str, there: bool
    ) -> None:
        self._made += 1
        info = Info(name=node.rpartition("/")[2], kind=Kind.COMMITTED, parent=parent.rpartition("/")[2], labels=stated)
        if there:
            snaprows.relabel(transaction, namespace, "s", new=info, fields=["labels"])
        else:
            snaprows.insert(transaction, namespace, "s", Row(info=info, backend_key=str(self._made)))

    def _make_images(
        self, transaction: Transaction, namespace: str, node: str, stated: dict[str, str], target: str, _: bool
    ) -> None:
        transaction.connection.execute(
            "INSERT OR REPLACE INTO images VALUES (?, ?, 'm', ?, 1, '{}', ?, 0, 0)",
            (namespace, node.partition("/")[2], target.partition("/")[2], pack(stated)),
        )
        edges.state(transaction.connection, namespace, node, stated, references=[(target, "target")])

    def _make_containers(
        self, transaction: Transaction, namespace: str, node: str, stated: dict[str, str], snapshot: str, _: bool
    ) -> None:
        transaction.connection.execute(
            "INSERT OR REPLACE INTO containers (namespace, id, labels, runtime, created_at, updated_at) "
            "VALUES (?, ?, ?, 'r', 0, 0)",
            (namespace, node.partition("/")[2], pack(stated)),
        )
        references = [(snapshot, "target")] if snapshot else []
        edges.state(transaction.connection, namespace, node, stated, references=references)

    def _make_leases(
        self, transaction: Transaction, namespace: str, node: str, stated: dict[str, str], _: str, __: bool
    ) -> None:
        transaction.connection.execute(
            "INSERT INTO leases VALUES (?, ?, ?, 0)", (namespace, node.partition("/")[2], pack(stated))
        )
        edges.state(transaction.connection, namespace, node, stated)

    def _make_ingests(
        self, transaction: Transaction, namespace: str, node: str, _: dict[str, str], expected: str, there: bool
    ) -> None:
        """It expires after an hour."""
        self._made += 1
        expiry = self.hours + 1
        transaction.connection.execute(
            "INSERT INTO ingests (namespace, ref, backend_ref, expected, shared, started_at, updated_at, expires_at) "
            "VALUES (?1, ?2, ?3, ?4, ?5, 0, 0, ?6) "
            "ON CONFLICT DO UPDATE SET expected = ?4, shared = ?5, expires_at = ?6",
            (
                namespace,
                node.partition("/")[2],
                str(self._made),
                expected.partition("/")[2] or None,
                int(bool(expected)),
                moment(expiry),
            ),
        )
        references = [(expected, "target")] if expected else []
        edges.state(transaction.connection, namespace, node, {}, references=references)
        self.spaces[namespace].expiries[node] = expiry


def _resource(node: str) -> Resource:
    kind, _, id = node.partition("/")
    if kind == "snapshots":
        snapshotter, _, id = id.partition("/")
        kind = f"snapshots/{snapshotter}"
    return Resource(type=kind, id=id)
