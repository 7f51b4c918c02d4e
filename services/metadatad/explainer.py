"""`carina.gc.Explainer`: one read of the records, then plain functions (`explain`), then names for what they found.

Only sizes of snapshots are asked for elsewhere: at the snapshotters, after the read, within a limit of time.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final

from carina import context
from carina import labels as names
from carina.errors import CarinaError, DeadlineExceeded, InvalidArgument, NotFound, Unavailable
from carina.gc import CHAINS, Chain, Doomed, Explanation, Hop, ImageUsage, Release, Root
from carina.snapshots import Kind, Snapshotter
from carina.sqlite import now, to_time
from metadatad import candidates, edges, explain, fullmark
from metadatad.columns import unpack
from metadatad.edges import Node
from metadatad.explain import Graph, Path
from metadatad.liveness import used_at
from metadatad.records import Records
from metadatad.roots import roots

MOST_CHAINS: Final = 1000
MEASURE_SECONDS: Final = 20.0
PARALLEL: Final = 8
"""Questions for sizes that one snapshotter gets at a time."""

_ROWS: Final = {
    "content": ("blobs", "digest", "updated_at"),
    "ingests": ("ingests", "ref", "updated_at"),
    "images": ("images", "name", "updated_at"),
    "leases": ("leases", "id", "created_at"),
    "containers": ("containers", "id", "updated_at"),
    "sandboxes": ("sandboxes", "id", "updated_at"),
}
"""Table, key and time of the last change, by the first part of a node."""
_OF_RECORDS: Final = {"parent": "parent", "flat": "resource (flat)", "ref": "resource"}
_TARGETS: Final = {"images": "target", "containers": "snapshot", "ingests": "expected"}


class Explainer:
    """`carina.gc.Explainer`."""

    def __init__(self, records: Records, snapshotters: Callable[[str], Snapshotter]) -> None:
        self._records = records
        self._snapshotters = snapshotters

    async def plan(self, *, if_removed: str = "") -> list[Doomed]:
        namespace = context.namespace() if if_removed else ""

        def find(connection: sqlite3.Connection) -> list[Doomed]:
            graphs = read_all(connection)
            if if_removed:
                node = edges.image(if_removed)
                if not any(graph.namespace == namespace and node in graph.sizes for graph in graphs):
                    raise NotFound(f"image {if_removed!r} does not exist")
                graphs = [graph.without(node) if graph.namespace == namespace else graph for graph in graphs]
            return explain.plan(graphs)

        return await self._records.read(find)

    async def plan_images(self) -> list[Release]:
        namespace = context.namespace()

        def find(connection: sqlite3.Connection) -> list[Release]:
            graphs = {graph.namespace: graph for graph in read_all(connection)}
            graph = graphs.pop(namespace, None)
            return [] if graph is None else explain.releases(graph, graphs.values())

        return await self._records.read(find)

    async def why(self, type: str, id: str, *, limit: int = CHAINS) -> Explanation:
        namespace, node = context.namespace(), _node(type, id)
        limit = min(max(limit, 1), MOST_CHAINS)

        def find(connection: sqlite3.Connection) -> Explanation:
            moment = now()
            graph = read(connection, namespace, moment)
            if node not in graph.sizes:
                raise NotFound(f"{type.partition('/')[0]} {id if type == 'content' else repr(id)} does not exist")
            found = explain.paths(graph, node)
            if not found:
                return Explanation(since=_since(connection, graph, node, moment))
            chains = tuple(_chain(connection, namespace, path) for path in found[:limit])
            return Explanation(chains=chains, more=len(found) - len(chains))

        return await self._records.read(find)

    async def usage(self) -> list[ImageUsage]:
        namespace = context.namespace()

        def find(connection: sqlite3.Connection) -> tuple[list[explain.Share], set[Node]]:
            rows = connection.execute(
                "SELECT snapshotter, key FROM snapshots WHERE namespace = ? AND kind = ?",
                (namespace, Kind.COMMITTED.value),
            )
            committed = {edges.snapshot(*row) for row in rows}
            return explain.shares(read(connection, namespace, now())), committed

        found, committed = await self._records.read(find)
        wanted = {node for share in found for node in share.snapshots} & committed
        sizes = await self._measure(wanted)
        return [
            ImageUsage(
                image=share.image,
                content=share.content,
                unique=share.unique,
                shared=share.content - share.unique,
                snapshots=len(share.snapshots),
                snapshot_bytes=sum(sizes.get(node, 0) for node in share.snapshots),
                unmeasured=len(share.snapshots - sizes.keys()),
            )
            for share in found
        ]

    async def _measure(self, nodes: Iterable[Node]) -> dict[Node, int]:
        """Sizes of committed snapshots, which snapshotters have recorded; without those that nobody told."""
        waiting: dict[str, list[str]] = {}
        for node in sorted(nodes):
            _, snapshotter, key = node.split("/", 2)
            waiting.setdefault(snapshotter, []).append(key)
        sizes: dict[Node, int] = {}
        with context.deadline(MEASURE_SECONDS):
            async with asyncio.TaskGroup() as tasks:
                for snapshotter, keys in waiting.items():
                    for number in range(min(PARALLEL, len(keys))):
                        asking = self._ask(snapshotter, keys, sizes)
                        tasks.create_task(asking, name=f"measure {snapshotter} {number}")
        return sizes

    async def _ask(self, snapshotter: str, keys: list[str], sizes: dict[Node, int]) -> None:
        while keys:
            key = keys.pop()
            try:
                usage = await self._snapshotters(snapshotter).usage(key)
            except (Unavailable, DeadlineExceeded):  # it would not tell the rest either
                keys.clear()
            except CarinaError:  # this one has gone meanwhile, or it can't tell
                continue
            else:
                sizes[edges.snapshot(snapshotter, key)] = usage.size


def read_all(connection: sqlite3.Connection) -> list[Graph]:
    """Every namespace, in the order in which a collection goes through them."""
    moment = now()
    found = connection.execute("SELECT name FROM namespaces ORDER BY name").fetchall()
    return [read(connection, name, moment) for (name,) in found]


def read(connection: sqlite3.Connection, namespace: str, moment: int) -> Graph:
    """One namespace, as a collection at that moment would see it."""
    rows = connection.execute(
        "SELECT source, destination, kind, condition FROM edges WHERE namespace = ?", (namespace,)
    )
    references = _references(connection, namespace, rows, moment)
    sizes: dict[Node, int] = {node: 0 for (node,) in connection.execute(fullmark.OBJECTS, (namespace,))}
    for digest, size in connection.execute("SELECT digest, size FROM blobs WHERE namespace = ?", (namespace,)):
        sizes[edges.content(digest)] = size
    shared = connection.execute(
        "SELECT ref, expected FROM ingests WHERE namespace = ? AND shared AND expected IS NOT NULL", (namespace,)
    )
    return Graph(
        namespace=namespace,
        roots=frozenset(roots(connection, namespace, moment)),
        references=references,
        sizes=sizes,
        sharing={edges.ingest(ref): edges.content(expected) for ref, expected in shared},
    )


def _references(
    connection: sqlite3.Connection, namespace: str, rows: Iterable[tuple[Node, Node, str, str]], moment: int
) -> dict[Node, list[tuple[Node, str]]]:
    """Edges by their source, without conditional ones whose condition does not hold."""
    result: dict[Node, list[tuple[Node, str]]] = {}
    for source, destination, kind, condition in rows:
        if kind != "cond" or edges.holds(condition, used_at(connection, namespace, source), to_time(moment)):
            result.setdefault(source, []).append((destination, kind))
    return result


def _node(type: str, id: str) -> Node:
    kind, slash, snapshotter = type.partition("/")
    if kind == "snapshot" and snapshotter:
        return edges.snapshot(snapshotter, id)
    nodes = {"content": edges.content, "ingest": edges.ingest, "image": edges.image, "lease": edges.lease}
    if slash or kind not in nodes:
        raise InvalidArgument(f"type {type!r} is not content, ingest, image, lease or snapshot/NAME")
    return nodes[kind](id)


def _chain(connection: sqlite3.Connection, namespace: str, path: Path) -> Chain:
    hops = []
    for source, destination, kind in path.edges:
        type, id = explain.described(destination)
        by = _reason(connection, namespace, (source, destination, kind))
        hops.append(Hop(type=type, id=id, by=by))
    return Chain(root=_root(connection, namespace, path.root), hops=tuple(hops))


def _reason(connection: sqlite3.Connection, namespace: str, edge: tuple[Node, Node, str]) -> str:
    """The label that makes an edge, or what it is in the record."""
    source, destination, kind = edge
    if kind == "target":
        return _TARGETS.get(source.partition("/")[0], kind)
    owner = destination if kind in explain.STATED_BY_DESTINATION else source
    for key, value in sorted(_labels(connection, namespace, owner).items()):
        stated = edges.of_labels(owner, {key: value})
        if any((found.source, found.destination, found.kind) == edge for found in stated):
            return key
    return _OF_RECORDS.get(kind, kind)


def _root(connection: sqlite3.Connection, namespace: str, node: Node) -> Root:
    type, id = explain.described(node)
    pins = dict(
        connection.execute(
            "SELECT kind, until FROM pins WHERE namespace = ? AND node = ?", (namespace, node)
        ).fetchall()
    )
    expiry = pins.get("expire")
    until = None if expiry is None else to_time(expiry)
    if type == "ingest":
        return Root(kind=type, type=type, id=id, until=_expiry(connection, namespace, id))
    if type != "content" and not type.startswith("snapshot/"):
        return Root(kind=type, type=type, id=id, until=until if type in ("image", "lease") else None)
    if "root" in pins:
        found = (key for key in sorted(_labels(connection, namespace, node)) if key.startswith(names.GC_ROOT))
        return Root(kind="label", type=type, id=id, by=next(found, names.GC_ROOT))
    if expiry is not None and expiry >= now():
        return Root(kind="label", type=type, id=id, by=names.GC_EXPIRE, until=until)
    return Root(kind="call", type=type, id=id)


def _since(connection: sqlite3.Connection, graph: Graph, node: Node, moment: int) -> datetime:
    """When a dead node, or what refers to it, last lost something that may have kept it."""
    found = (candidates.since(connection, graph.namespace, other, moment) for other in explain.ancestors(graph, node))
    noted = max((moment for moment in found if moment is not None), default=None)
    return to_time(_changed(connection, graph.namespace, node) if noted is None else noted)


def _expiry(connection: sqlite3.Connection, namespace: str, ref: str) -> datetime | None:
    row = connection.execute(
        "SELECT expires_at FROM ingests WHERE namespace = ? AND ref = ?", (namespace, ref)
    ).fetchone()
    return None if row is None or row[0] is None else to_time(row[0])


def _labels(connection: sqlite3.Connection, namespace: str, node: Node) -> dict[str, str]:
    if node.startswith("ingests/"):
        return {}
    row = _row(connection, "labels", namespace, node)
    return {} if row is None else unpack(str(row))


def _changed(connection: sqlite3.Connection, namespace: str, node: Node) -> int:
    kind = node.partition("/")[0]
    moment = _row(connection, _ROWS[kind][2] if kind in _ROWS else "updated_at", namespace, node)
    return moment if isinstance(moment, int) else 0


def _row(connection: sqlite3.Connection, column: str, namespace: str, node: Node) -> object:
    """One column of a node's record; None if there is no record."""
    kind, _, id = node.partition("/")
    if kind == "snapshots":
        table, where, keys = "snapshots", "snapshotter = ? AND key = ?", tuple(id.split("/", 1))
    else:
        table, key, _ = _ROWS[kind]
        where, keys = f"{key} = ?", (id,)
    row = connection.execute(
        f"SELECT {column} FROM {table} WHERE namespace = ? AND {where}",  # noqa: S608 - names of ours
        (namespace, *keys),
    ).fetchone()
    return None if row is None else row[0]
