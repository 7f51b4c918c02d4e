"""What a collection would do and why: plain functions over nodes and edges, one namespace's graph each (see `gc`)."""

from collections import ChainMap, Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from carina.gc import Doomed, Release
from metadatad import gc
from metadatad.edges import Node
from metadatad.gc import Kind, Mark, References

State = tuple[Node, bool]
"""A node and whether it is reached only flatly."""
STATED_BY_DESTINATION = frozenset({"bref", "cond"})
TYPES: Mapping[str, str] = {
    "content": "content",
    "ingests": "ingest",
    "images": "image",
    "leases": "lease",
    "containers": "container",
    "sandboxes": "sandbox",
}
"""The first part of a node -> the type that clients know. A snapshot's is `snapshot/NAME`."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The references in one namespace at one moment; conditional ones are there where their condition holds."""

    namespace: str
    roots: frozenset[Node]
    references: References
    sizes: Mapping[Node, int]
    """Every recorded object that can be collected, with its bytes: 0 but for content."""
    sharing: Mapping[Node, Node]
    """Ingests without bytes of their own -> the content that they keep in the back end, whoever recorded it."""

    @cached_property
    def incoming(self) -> References:
        """What refers to a node."""
        result: dict[Node, list[tuple[Node, Kind]]] = defaultdict(list)
        for source, found in self.references.items():
            for destination, kind in found:
                result[destination].append((source, kind))
        return dict(result)

    @cached_property
    def live(self) -> Mark:
        return gc.mark(self.roots, self.references)

    def without(self, node: Node) -> "Graph":
        """The graph after the removal of that record, with what it states; what others state of it stays."""
        sizes = {other: size for other, size in self.sizes.items() if other != node}
        return replace(self, roots=self.roots - {node}, references=self.references_without(node), sizes=sizes)

    def references_without(self, node: Node) -> References:
        changed = {node: [edge for edge in self.references.get(node, ()) if edge[1] in STATED_BY_DESTINATION]}
        for source, kind in self.incoming.get(node, ()):
            if kind in STATED_BY_DESTINATION:
                before = changed.get(source, self.references[source])
                changed[source] = [edge for edge in before if edge != (node, kind)]
        return ChainMap(changed, self.references)  # type: ignore[arg-type] # only ever read


@dataclass(frozen=True, slots=True)
class Path:
    """A chain of references: where it begins, and the edges that it follows."""

    root: Node
    edges: tuple[tuple[Node, Node, Kind], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one image keeps."""

    image: str
    content: int
    unique: int
    snapshots: frozenset[Node]


def described(node: Node) -> tuple[str, str]:
    """A node's type and id as clients know them."""
    kind, _, rest = node.partition("/")
    if kind == "snapshots":
        snapshotter, _, key = rest.partition("/")
        return f"snapshot/{snapshotter}", key
    return TYPES[kind], rest


def plan(graphs: Sequence[Graph]) -> list[Doomed]:
    """What a collection of all namespaces would remove. Bytes are counted where the last record of a blob goes."""
    kept = {node for graph in graphs for node in _needed(graph)}
    result: list[Doomed] = []
    for graph in reversed(graphs):
        dead = sorted(node for node in graph.sizes if node not in graph.live)
        for node in reversed(dead):
            type, id = described(node)
            size = 0 if node in kept else graph.sizes[node]
            kept.add(node)
            result.append(Doomed(namespace=graph.namespace, type=type, id=id, bytes=size))
    return result[::-1]


def releases(graph: Graph, others: Iterable[Graph]) -> list[Release]:
    """What would go with each image alone.

    Only what the image reaches can go with it, and of that only what nothing else reaches: so each image costs as
    much as it keeps, and not as much as the namespace holds.
    """
    elsewhere = {node for other in others for node in _needed(other)}
    result = []
    for image in _images(graph):
        gone = [node for node in _freed(graph, image) if node in graph.sizes]
        content = [node for node in gone if node.startswith("content/")]
        snapshots = sum(node.startswith("snapshots/") for node in gone)
        freed = sum(graph.sizes[node] for node in content if node not in elsewhere)
        name = described(image)[1]
        result.append(Release(image=name, bytes=freed, content=len(content), snapshots=snapshots))
    return result


def paths(graph: Graph, node: Node) -> list[Path]:
    """The shortest path from each root that keeps the node, the shortest first; none if nothing keeps it."""
    following: dict[State, tuple[State, Kind] | None] = {(node, False): None, (node, True): None}
    todo: deque[State] = deque(following)
    result = []
    while todo:
        state = todo.popleft()
        if not state[1] and state[0] in graph.roots:
            result.append(_path(state, following))
        for before, kind in sorted(_before(graph, state)):
            if before not in following:
                following[before] = (state, kind)
                todo.append(before)
    return result


def ancestors(graph: Graph, node: Node) -> set[Node]:
    """The node and everything from which it can be reached, alive or not."""
    seen, todo = {node}, [node]
    while todo:
        for source, _ in graph.incoming.get(todo.pop(), ()):
            if source not in seen:
                seen.add(source)
                todo.append(source)
    return seen


def shares(graph: Graph) -> list[Share]:
    """What each image keeps, whether or not something else keeps it too."""
    reached = {image: _reached(graph, image) & graph.sizes.keys() for image in _images(graph)}
    keepers = Counter(node for nodes in reached.values() for node in nodes)
    result = []
    for image, nodes in reached.items():
        content = [node for node in nodes if node.startswith("content/")]
        result.append(
            Share(
                image=described(image)[1],
                content=sum(graph.sizes[node] for node in content),
                unique=sum(graph.sizes[node] for node in content if keepers[node] == 1),
                snapshots=frozenset(node for node in nodes if node.startswith("snapshots/")),
            )
        )
    return result


def _images(graph: Graph) -> list[Node]:
    return sorted(node for node in graph.sizes if node.startswith("images/"))


def _reached(graph: Graph, node: Node) -> set[Node]:
    mark = gc.mark([node], graph.references)
    return {*mark.fully, *mark.flatly}


def _needed(graph: Graph) -> Iterator[Node]:
    """Content that the namespace keeps in the back end."""
    yield from (node for node in graph.sizes if node.startswith("content/") and node in graph.live)
    yield from (content for ingest, content in graph.sharing.items() if ingest in graph.live)


def _freed(graph: Graph, image: Node) -> set[Node]:
    """What is alive and would not be without the image, itself aside."""
    near = _reached(graph, image)
    full: set[Node] = set()
    flat: set[Node] = set()
    for node in near:
        if node in graph.roots and node != image:
            full.add(node)
            continue
        for source, kind in graph.incoming.get(node, ()):
            if source in near or (node == image and kind in STATED_BY_DESTINATION):
                continue
            if source in graph.live.fully and kind != "flat":
                full.add(node)
                break  # there is no more to find out, and a common layer has many that refer to it
            if source in graph.live.fully or (source in graph.live.flatly and gc.is_essential(source, kind)):
                flat.add(node)
    kept = gc.mark(full, graph.references_without(image), flat_roots=flat)
    return {node for node in near if node in graph.live and node not in kept and node != image}


def _before(graph: Graph, state: State) -> Iterator[tuple[State, Kind]]:
    """The states that a mark reaches this one from, and by which kind of edge."""
    node, flat = state
    for source, kind in graph.incoming.get(node, ()):
        if flat == (kind == "flat"):
            yield (source, False), kind
        if flat and gc.is_essential(source, kind):
            yield (source, True), kind


def _path(state: State, following: Mapping[State, tuple[State, Kind] | None]) -> Path:
    root, edges = state[0], []
    while (step := following[state]) is not None:
        edges.append((state[0], step[0][0], step[1]))
        state = step[0]
    return Path(root, tuple(edges))
