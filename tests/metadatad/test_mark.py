"""The marks, forwards and backwards, against a plain model of containerd's rules."""

import sqlite3
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carina.sqlite import now
from carina.sqlite.migrations import apply, migrations
from metadatad import fullmark, gc
from metadatad.liveness import Liveness

NODES = [f"{type}/{number}" for type in ("content", "images") for number in range(4)]
NODES += [f"snapshots/s/{number}" for number in range(4)] + ["leases/0", "leases/1", "ingests/0"]
KINDS = ("target", "parent", "ref", "flat", "bref")
Edges = set[tuple[str, str, str]]

edges = st.sets(st.tuples(st.sampled_from(NODES), st.sampled_from(NODES), st.sampled_from(KINDS)), max_size=25)
roots = st.sets(st.sampled_from(NODES), max_size=4)


def model(roots: set[str], edges: Edges) -> set[str]:
    """Every rule tried on everything until nothing changes."""
    alive = {(root, False) for root in roots}
    while True:
        new = set()
        for source, destination, kind in edges:
            if (source, False) in alive:
                new.add((destination, kind == "flat"))
            essential = (kind, source.partition("/")[0]) in {("target", "images"), ("parent", "snapshots")}
            if (source, True) in alive and essential:
                new.add((destination, True))
        if new <= alive:
            return {node for node, _ in alive}
        alive |= new


def references(edges: Edges) -> dict[str, list[tuple[str, str]]]:
    result = defaultdict(list)
    for source, destination, kind in edges:
        result[source].append((destination, kind))
    return result


@given(roots, edges)
@settings(deadline=None)
def test_mark_is_the_model(roots: set[str], edges: Edges) -> None:
    """The mark reaches exactly what the rules keep, through cycles and flat references."""
    mark = gc.mark(roots, references(edges))

    assert mark.fully | mark.flatly == model(roots, edges)


@given(st.sets(st.sampled_from(NODES)), edges)
@settings(deadline=None)
def test_children_go_first(nodes: set[str], edges: Edges) -> None:
    """The order of removal has everything once, and no snapshot before what stands on it, unless there is a cycle."""
    parents = {(s, d, k) for s, d, k in edges if k == "parent" and s < d}
    others = {(s, d, k) for s, d, k in edges if k != "parent"}
    order = gc.referrers_first(nodes, references(parents | others))

    assert sorted(order) == sorted(nodes)
    assert [(s, d) for s, d, _ in parents if {s, d} <= nodes and order.index(s) > order.index(d)] == []


@given(st.sets(st.sampled_from(NODES)), edges)
@settings(deadline=None)
def test_referrers_go_first(nodes: set[str], edges: Edges) -> None:
    """Without cycles nothing comes before what refers to it."""
    forwards = {(s, d, k) for s, d, k in edges if s < d}
    order = gc.referrers_first(nodes, references(forwards))

    assert [(s, d) for s, d, _ in forwards if {s, d} <= nodes and order.index(s) > order.index(d)] == []


@pytest.fixture(scope="module")
def database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    apply(connection, migrations("metadatad"), name="memory")
    return connection


def fill(connection: sqlite3.Connection, roots: set[str], edges: Edges) -> None:
    for table in ("pins", "edges", "images", "blobs", "snapshots", "leases", "ingests", "containers", "namespaces"):
        connection.execute(f"DELETE FROM {table}")
    connection.execute("INSERT INTO namespaces (name) VALUES ('n')")
    for number in range(4):
        connection.execute("INSERT INTO blobs VALUES ('n', ?, 1, '{}', 0, 0)", (str(number),))
        connection.execute("INSERT INTO snapshots VALUES ('n', 's', ?1, ?1, 3, '', '{}', 0, 0)", (str(number),))
        connection.execute("INSERT INTO images VALUES ('n', ?, 'm', 'd', 1, '{}', '{}', 0, 0)", (str(number),))
    for node in NODES:  # an image that is no root is one that expired
        type, _, name = node.partition("/")
        if type == "images" and node not in roots:
            connection.execute("INSERT INTO pins VALUES ('n', ?, 'expire', 1)", (node,))
        elif node in roots and type in ("content", "snapshots"):
            connection.execute("INSERT INTO pins VALUES ('n', ?, 'root', NULL)", (node,))
        elif node in roots and type == "leases":
            connection.execute("INSERT INTO leases VALUES ('n', ?, '{}', 0)", (name,))
        elif node in roots and type == "ingests":
            connection.execute(
                "INSERT INTO ingests (namespace, ref, backend_ref, started_at, updated_at, expires_at) "
                "VALUES ('n', ?1, ?1, 0, 0, 9000000000000000)",
                (name,),
            )
    connection.executemany("INSERT INTO edges VALUES ('n', ?, ?, ?, '')", edges)


def dead_by_model(roots: set[str], edges: Edges) -> set[str]:
    collectible = {node for node in NODES if node.partition("/")[0] in ("content", "images", "snapshots")}
    return collectible - model(roots, edges)


@given(roots, edges)
@settings(deadline=None)
def test_full_mark_finds_the_garbage(database: sqlite3.Connection, roots: set[str], edges: Edges) -> None:
    """What the query over a database calls dead is what no rule keeps."""
    fill(database, roots, edges)
    dead = {node for node, candidate in fullmark.dead(database, "n", now()) if not candidate}

    assert dead == dead_by_model(roots, edges)


@given(roots, edges, st.permutations(NODES))
@settings(deadline=None)
def test_search_backwards_agrees(database: sqlite3.Connection, roots: set[str], edges: Edges, order: list[str]) -> None:
    """Asked for one node after the other, in any order, the search says what the rules say."""
    fill(database, roots, edges)
    liveness = Liveness(database, "n", now())

    assert {node for node in order if liveness.is_alive(node)} == model(roots, edges) & set(NODES)


def test_search_backwards_reads_no_more_than_it_needs(database: sqlite3.Connection) -> None:
    """A blob that thousands of images refer to is proven alive by the first page of them."""
    fill(database, set(), set())
    database.execute("DELETE FROM pins")
    names = [f"many/{number:05}" for number in range(5_000)]
    database.executemany("INSERT INTO images VALUES ('n', ?, 'm', 'd', 1, '{}', '{}', 0, 0)", [(n,) for n in names])
    rows = [(f"images/{name}",) for name in names]
    database.executemany("INSERT INTO edges VALUES ('n', ?, 'content/0', 'target', '')", rows)
    statements: list[str] = []
    database.set_trace_callback(statements.append)
    assert Liveness(database, "n", now()).is_alive("content/0")
    database.set_trace_callback(None)

    assert len(statements) < 10
