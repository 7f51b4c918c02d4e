"""What a collection would do and why: over small graphs, and against the mark on any graph."""

import sqlite3
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carina.gc import Doomed
from carina.sqlite.migrations import apply, migrations
from metadatad import explain, gc, images
from metadatad.explain import Graph, Path
from metadatad.explainer import read_all
from support.collection import collect

NODES = [f"content/sha256:{number:064x}" for number in range(4)] + [f"images/{number}" for number in range(4)]
NODES += [f"snapshots/s/{number}" for number in range(3)] + ["leases/0", "ingests/0"]
KINDS = ("target", "parent", "ref", "flat", "bref")
Edges = set[tuple[str, str, str]]

edges = st.sets(st.tuples(st.sampled_from(NODES), st.sampled_from(NODES), st.sampled_from(KINDS)), max_size=25)
roots = st.sets(st.sampled_from(NODES), max_size=4)
graphs = st.builds(lambda roots, edges: graph(edges, roots=roots), roots, edges)


def graph(
    edges: Edges, *, roots: set[str], namespace: str = "n", sharing: dict[str, str] | None = None, size: int = 10
) -> Graph:
    """Every node of the edges is recorded; content has a size."""
    references = defaultdict(list)
    for source, destination, kind in sorted(edges):
        references[source].append((destination, kind))
    known = {node for source, destination, _ in edges for node in (source, destination)} | roots
    return Graph(
        namespace=namespace,
        roots=frozenset(roots),
        references=dict(references),
        sizes={node: size if node.startswith("content/") else 0 for node in known},
        sharing=sharing or {},
    )


IMAGE = {
    ("images/a", "content/m", "target"),
    ("content/m", "content/own", "ref"),
    ("content/m", "content/both", "ref"),
    ("content/own", "snapshots/s/top", "ref"),
    ("snapshots/s/top", "snapshots/s/base", "parent"),
}
OTHER = {("images/b", "content/n", "target"), ("content/n", "content/both", "ref")}


def dead(graph: Graph) -> set[str]:
    return {node for node in graph.sizes if node not in gc.mark(graph.roots, graph.references)}


def test_plan_lists_what_nothing_keeps() -> None:
    """With an image's record gone, what only it kept would go, and what another image shares stays."""
    both = graph(IMAGE | OTHER, roots={"images/a", "images/b"})

    assert explain.plan([both]) == []
    assert explain.plan([both.without("images/a")]) == [
        Doomed(namespace="n", type="content", id="m", bytes=10),
        Doomed(namespace="n", type="content", id="own", bytes=10),
        Doomed(namespace="n", type="snapshot/s", id="base"),
        Doomed(namespace="n", type="snapshot/s", id="top"),
    ]


def test_plan_counts_bytes_once_and_only_where_the_last_record_goes() -> None:
    """A blob that another namespace keeps, or an ingest there, brings no bytes back; one that goes twice does once."""
    edges = {("images/a", "content/m", "target")}
    gone = graph(edges, roots=set(), namespace="1")
    kept = graph(edges, roots={"images/a"}, namespace="2")
    writing = graph(set(), roots={"ingests/i"}, namespace="2", sharing={"ingests/i": "content/m"})
    stale = graph({("leases/l", "ingests/i", "ref")}, roots=set(), namespace="2", sharing=dict(writing.sharing))

    def freed(*graphs: Graph) -> list[tuple[str, int]]:
        return [(d.namespace, d.bytes) for d in explain.plan(graphs) if d.type == "content"]

    assert freed(gone) == [("1", 10)]
    assert freed(gone, kept) == [("1", 0)]
    assert freed(gone, writing) == [("1", 0)]
    assert freed(gone, stale) == [("1", 10)]
    assert freed(gone, graph(edges, roots=set(), namespace="2")) == [("1", 0), ("2", 10)]


def test_releases_are_what_each_image_alone_would_free() -> None:
    """Shared content comes back with neither image; a blob that another namespace keeps does not come back."""
    both = graph(IMAGE | OTHER, roots={"images/a", "images/b"})
    other = graph({("leases/l", "content/n", "ref")}, roots={"leases/l"}, namespace="2")
    found = [(r.image, r.bytes, r.content, r.snapshots) for r in explain.releases(both, [other])]

    assert found == [("a", 20, 2, 2), ("b", 0, 1, 0)]


def test_paths_lead_from_each_root_along_the_shortest_way() -> None:
    """A shared layer is kept by both images; the chain names every reference in order."""
    both = graph(IMAGE | OTHER | {("content/m", "content/n", "ref")}, roots={"images/a", "images/b"})

    assert explain.paths(both, "content/both") == [
        Path("images/a", (("images/a", "content/m", "target"), ("content/m", "content/both", "ref"))),
        Path("images/b", (("images/b", "content/n", "target"), ("content/n", "content/both", "ref"))),
    ]
    assert explain.paths(both, "images/a") == [Path("images/a", ())]


def test_a_flat_reference_explains_only_what_it_keeps() -> None:
    """A flat lease keeps a snapshot with its parents, and content without what that refers to."""
    edges = IMAGE | {("leases/l", "snapshots/s/top", "flat"), ("leases/l", "content/m", "flat")}
    leased = graph(edges, roots={"leases/l"})

    assert [path.root for path in explain.paths(leased, "snapshots/s/base")] == ["leases/l"]
    assert explain.paths(leased, "content/own") == []


def test_shares_tell_unique_from_shared() -> None:
    """What two images keep is unique to neither, whatever else keeps it."""
    edges = IMAGE | OTHER | {("leases/l", "content/own", "ref")}
    found = {s.image: s for s in explain.shares(graph(edges, roots={"images/a", "images/b", "leases/l"}))}

    assert {name: (s.content, s.unique) for name, s in found.items()} == {"a": (30, 20), "b": (20, 10)}
    assert found["a"].snapshots == {"snapshots/s/top", "snapshots/s/base"}
    assert found["b"].snapshots == set()


@given(graphs)
@settings(deadline=None)
def test_what_is_alive_has_a_reason_and_nothing_else_does(any: Graph) -> None:
    """There is a chain exactly for what the mark reaches, and each is a chain from a root along edges that exist."""
    mark = gc.mark(any.roots, any.references)
    for node in any.sizes:
        paths = explain.paths(any, node)
        assert bool(paths) == (node in mark)
        assert len({path.root for path in paths}) == len(paths)
        for path in paths:
            assert path.root in any.roots
            ends = [path.root, *(destination for _, destination, _ in path.edges)]
            assert [source for source, _, _ in path.edges] == ends[:-1]
            assert ends[-1] == node
            assert all((destination, kind) in any.references[source] for source, destination, kind in path.edges)


@given(graphs, graphs)
@settings(deadline=None)
def test_releases_agree_with_the_plan(mine: Graph, other: Graph) -> None:
    """What an image alone would free is what its removal adds to the plan."""
    before = set(dead(mine))
    for release in explain.releases(mine, [other]):
        image = f"images/{release.image}"
        after = dead(mine.without(image)) - before
        kept = {node for node in other.sizes if node in other.live}
        content = {node for node in after if node.startswith("content/")}

        assert release.content == len(content)
        assert release.snapshots == sum(node.startswith("snapshots/") for node in after)
        assert release.bytes == 10 * len(content - kept)


@pytest.fixture(scope="module")
def database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    apply(connection, migrations("metadatad"), name="memory")
    return connection


def fill(connection: sqlite3.Connection, namespace: str, roots: set[str], edges: Edges) -> None:
    """Records for every node; those that are no roots have expired."""
    connection.execute("INSERT INTO namespaces (name) VALUES (?)", (namespace,))
    for node in NODES:
        type, _, name = node.partition("/")
        values = (namespace, name.removeprefix("s/"))
        if type == "content":
            connection.execute("INSERT INTO blobs VALUES (?, ?, 7, '{}', 0, 0)", values)
        elif type == "snapshots":
            connection.execute("INSERT INTO snapshots VALUES (?1, 's', ?2, ?1 || ?2, 3, '', '{}', 0, 0)", values)
        elif type == "images":
            connection.execute("INSERT INTO images VALUES (?, ?, 'm', 'd', 1, '{}', '{}', 0, 0)", values)
        elif type == "leases":
            connection.execute("INSERT INTO leases VALUES (?, ?, '{}', 0)", values)
        else:
            connection.execute(
                "INSERT INTO ingests (namespace, ref, backend_ref, started_at, updated_at, expires_at) "
                "VALUES (?1, ?2, ?1 || ?2, 0, 0, ?3)",
                (*values, 9_000_000_000_000_000 if node in roots else 1),
            )
        if type in ("images", "leases") and node not in roots:
            connection.execute("INSERT INTO pins VALUES (?, ?, 'expire', 1)", (namespace, node))
        elif node in roots and type in ("content", "snapshots"):
            connection.execute("INSERT INTO pins VALUES (?, ?, 'root', NULL)", (namespace, node))
    connection.executemany("INSERT INTO edges VALUES (?, ?, ?, ?, '')", [(namespace, *edge) for edge in edges])


@given(roots, edges, roots, edges, st.sampled_from(["", *(f"images/{number}" for number in range(4))]))
@settings(deadline=None, max_examples=60)
def test_the_plan_is_what_a_collection_removes(
    database: sqlite3.Connection, first: set[str], of_first: Edges, second: set[str], of_second: Edges, removed: str
) -> None:
    """Over two namespaces that share blobs: the same objects and the same bytes, with an image's record gone or not."""
    for table in "pins edges images blobs snapshots leases ingests namespaces tombstones candidates".split():
        database.execute(f"DELETE FROM {table}")
    fill(database, "1", first, of_first)
    fill(database, "2", second, of_second)
    graphs = read_all(database)
    if removed:
        graphs[0] = graphs[0].without(removed)
    planned = explain.plan(graphs)

    if removed:
        discard(database, "1", removed)
    before = recorded(database)
    swept = collect(database)
    assert {(d.namespace, d.type, d.id) for d in planned} == before - recorded(database)
    assert sum(d.bytes for d in planned) == swept.bytes
    assert explain.plan(read_all(database)) == []


def discard(connection: sqlite3.Connection, namespace: str, image: str) -> None:
    images.discard(connection, namespace, image.removeprefix("images/"))


def recorded(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    return {(graph.namespace, *explain.described(node)) for graph in read_all(connection) for node in graph.sizes}
