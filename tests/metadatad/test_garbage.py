"""Whatever happens to the records, and wherever a collection is cut off: nothing live goes, nothing dead stays."""

import sqlite3
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carina.sqlite.migrations import apply, migrations
from metadatad import candidates, fullmark
from metadatad.fullmark import OBJECTS
from support.collection import collect, steps, transaction
from support.world import Label, World, moment

DIGESTS = [f"content/sha256:{number:064x}" for number in range(3)]
SNAPSHOTS = [f"snapshots/s/{number}" for number in range(3)]
IMAGES = ["images/a", "images/b"]
LEASES = ["leases/l", "leases/m"]
MADE = [*DIGESTS, *SNAPSHOTS, *IMAGES, *LEASES, "containers/c", "ingests/i"]
KEPT = [*DIGESTS, *SNAPSHOTS, *IMAGES]
TABLES = "pins edges intents lease_resources leases images containers blobs snapshots ingests candidates tombstones"
Step = Callable[[World, sqlite3.Connection], None]

hours = st.integers(0, 6)
spaces = st.sampled_from(["1", "1", "1", "2"])
label = st.one_of(
    st.builds(Label, st.just("root")),
    st.builds(Label, st.just("expire"), st.just(""), hours),
    st.builds(Label, st.just("ref"), st.sampled_from(KEPT)),
    st.builds(Label, st.just("bref"), st.sampled_from([*KEPT, "containers/c"])),
    st.builds(Label, st.sampled_from(["cond<", "cond>"]), st.sampled_from(SNAPSHOTS), hours),
    st.builds(Label, st.just("used"), st.just(""), hours),
    st.builds(Label, st.just("flat")),
)
labels = st.frozensets(label, max_size=3).map(
    lambda found: frozenset({one.kind if one.kind == "expire" else one: one for one in found}.values())
)


def make(namespace: str, node: str, stated: frozenset[Label], number: int) -> Step:
    def step(world: World, connection: sqlite3.Connection) -> None:
        kind = node.partition("/")[0]
        others = {"images": DIGESTS, "ingests": ["", *DIGESTS], "containers": ["", *SNAPSHOTS]}
        older = SNAPSHOTS[: SNAPSHOTS.index(node)] if node in SNAPSHOTS else []
        choices = others.get(kind, ["", *older] if kind == "snapshots" else [""])
        with transaction(connection) as one:
            world.make(one, namespace, node, stated, choices[number % len(choices)])

    return step


def remove(namespace: str, node: str) -> Step:
    def step(world: World, connection: sqlite3.Connection) -> None:
        if node in world.spaces[namespace].records:
            with transaction(connection) as one:
                world.remove(one, namespace, node)

    return step


def hold(namespace: str, lease: str, node: str, held: bool) -> Step:
    def step(world: World, connection: sqlite3.Connection) -> None:
        if lease in world.spaces[namespace].records:
            with transaction(connection) as one:
                world.hold(one, namespace, lease, node, held=held)

    return step


def call(namespace: str, parent: str, source: str) -> Step:
    return lambda world, connection: world.call(connection, namespace, parent, source)


def end_call(namespace: str) -> Step:
    return lambda world, connection: world.end_call(connection, namespace)


def later(by: int) -> Step:
    def step(world: World, connection: sqlite3.Connection) -> None:
        world.hours += by

    return step


def crash(after: int, chunk: int) -> Step:
    """A collection that ends after some of its steps, whether or not it is through."""

    def step(world: World, connection: sqlite3.Connection) -> None:
        collection = steps(connection, chunk=chunk, moment=moment(world.hours))
        for _ in range(after):
            next(collection, None)
        collection.close()
        collected(world, connection, through=False)

    return step


def collected(world: World, connection: sqlite3.Connection, *, through: bool) -> None:
    """Nothing went that the model keeps; if the collection is `through`, nothing else is left."""
    for namespace, space in world.spaces.items():
        there = {node for (node,) in connection.execute(OBJECTS, (namespace,))}
        known = {node for node in space.records if not node.startswith("containers/")}
        alive = space.alive(world.hours)
        assert known & alive <= there <= known
        for node in known - there:
            space.drop(node)
        assert not through or there <= alive


def settle(world: World, connection: sqlite3.Connection) -> None:
    """A whole collection: what is left is alive, and no candidate any more."""
    collect(connection, moment=moment(world.hours))
    collected(world, connection, through=True)


def begin(connection: sqlite3.Connection) -> World:
    """Two images that share a layer, a container, leases, one with an end: all alive, and nothing of it a candidate."""
    world, none = World(), frozenset[Label]()
    manifest = frozenset({Label("ref", DIGESTS[1]), Label("ref", SNAPSHOTS[1])})
    for node, stated, number in [
        (DIGESTS[0], manifest, 0),
        (DIGESTS[1], none, 0),
        (DIGESTS[2], frozenset({Label("ref", DIGESTS[1])}), 0),
        (SNAPSHOTS[0], none, 0),
        (SNAPSHOTS[1], none, 1),
        (SNAPSHOTS[2], none, 2),
        ("images/a", none, 0),
        ("images/b", none, 2),
        ("containers/c", none, 3),
        ("leases/l", frozenset({Label("expire", hours=3)}), 0),
        ("leases/m", frozenset({Label("flat")}), 0),
    ]:
        make("1", node, stated, number)(world, connection)
    hold("1", "leases/l", DIGESTS[0], True)(world, connection)
    hold("1", "leases/m", DIGESTS[0], True)(world, connection)
    make("2", DIGESTS[0], frozenset({Label("root")}), 0)(world, connection)
    settle(world, connection)
    return world


steps_of_a_life = st.one_of(
    st.builds(make, spaces, st.sampled_from(MADE), labels, st.integers(0, 3)),
    st.builds(make, spaces, st.sampled_from(KEPT), labels, st.integers(0, 3)),
    st.builds(remove, spaces, st.sampled_from(MADE)),
    st.builds(hold, spaces, st.sampled_from(LEASES), st.sampled_from([*KEPT, "ingests/i"]), st.booleans()),
    st.builds(call, spaces, st.sampled_from(["", *SNAPSHOTS]), st.sampled_from(["", *SNAPSHOTS])),
    st.builds(end_call, spaces),
    st.builds(later, st.integers(1, 3)),
    st.builds(crash, st.integers(0, 12), st.integers(1, 3)),
    st.just(settle),
)


@pytest.fixture(scope="module")
def database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    apply(connection, migrations("metadatad"), name="memory")
    return connection


@given(st.booleans(), st.lists(steps_of_a_life, max_size=25))
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_nothing_live_goes_and_nothing_dead_stays(database: sqlite3.Connection, empty: bool, life: list[Step]) -> None:
    """After any life, with crashes between and within the steps of collections, what the rules keep is left.

    On the way the candidates tell all garbage that the full mark finds, and both agree with the model.
    """
    clear(database)
    world = World() if empty else begin(database)
    for step in life:
        step(world, database)
        marked_as_modelled(world, database)
    settle(world, database)
    assert fullmark.mark(database, moment(world.hours), pace=False).dead == 0
    assert candidates.waiting(database, moment(world.hours)) == 0
    recorded = {node for space in world.spaces.values() for node in space.records}
    buried = {f"content/{key}" for (key,) in database.execute("SELECT key FROM tombstones WHERE type = 'content'")}
    assert not buried & recorded


def clear(connection: sqlite3.Connection) -> None:
    for table in (*TABLES.split(), "candidates"):
        connection.execute(f"DELETE FROM {table}")


def marked_as_modelled(world: World, connection: sqlite3.Connection) -> None:
    assert fullmark.mark(connection, moment(world.hours), pace=False).missed == []
    for namespace, space in world.spaces.items():
        found = {node for node, candidate in fullmark.dead(connection, namespace, moment(world.hours)) if not candidate}
        known = {node for node in space.records if not node.startswith("containers/")}
        assert found == known - space.alive(world.hours)


D0, D1, D2 = DIGESTS
S0, S1, _ = SNAPSHOTS
NONE = frozenset[Label]()
ROOT, USED = Label("root"), Label("used", hours=0)
BELOW_D1 = [make("1", D0, NONE, 0), make("1", D1, frozenset({Label("ref", D0)}), 0), make("1", "images/a", NONE, 1)]
CONDITION = frozenset({Label("cond<", S0, 2)})
WAYS: dict[str, tuple[list[Step], list[Step]]] = {
    "a blob is made": ([], [make("1", D0, NONE, 0)]),
    "a snapshot is made": ([], [make("1", S0, NONE, 0)]),
    "an image is removed": ([make("1", D0, NONE, 0), make("1", "images/a", NONE, 0)], [remove("1", "images/a")]),
    "an image has another target": (BELOW_D1, [make("1", "images/a", NONE, 0)]),
    "a blob refers to it no more": (BELOW_D1, [make("1", D1, NONE, 0)]),
    "a container is removed": (
        [make("1", S0, NONE, 0), make("1", "containers/c", NONE, 1)],
        [remove("1", "containers/c")],
    ),
    "it is no root any more": ([make("1", D0, frozenset({ROOT}), 0)], [make("1", D0, NONE, 0)]),
    "it expires": ([make("1", D0, frozenset({Label("expire", hours=2)}), 0)], [later(3)]),
    "an image expires": (
        [make("1", D0, NONE, 0), make("1", "images/a", frozenset({Label("expire", hours=2)}), 0)],
        [later(3)],
    ),
    "a lease expires": (
        [
            make("1", "leases/l", frozenset({Label("expire", hours=2)}), 0),
            make("1", S0, NONE, 0),
            hold("1", "leases/l", S0, True),
        ],
        [later(3)],
    ),
    "a lease is removed": (
        [make("1", "leases/l", NONE, 0), make("1", D0, NONE, 0), hold("1", "leases/l", D0, True)],
        [remove("1", "leases/l")],
    ),
    "a lease lets go of it": (
        [make("1", "leases/l", NONE, 0), make("1", D0, NONE, 0), hold("1", "leases/l", D0, True)],
        [hold("1", "leases/l", D0, False)],
    ),
    "an ingest expires": ([make("1", "ingests/i", NONE, 0)], [later(2)]),
    "an ingest expires that was opened again": (
        [make("1", "ingests/i", NONE, 0), later(1), make("1", "ingests/i", NONE, 0), later(1), settle],
        [later(1)],
    ),
    "the image is gone that it says keeps it": (
        [
            make("1", D0, frozenset({Label("bref", "images/a")}), 0),
            make("1", D1, NONE, 0),
            make("1", "images/a", NONE, 1),
        ],
        [remove("1", "images/a")],
    ),
    "the container is gone that it says keeps it": (
        [make("1", D0, frozenset({Label("bref", "containers/c")}), 0), make("1", "containers/c", NONE, 0)],
        [remove("1", "containers/c")],
    ),
    "a call ends": ([make("1", S0, NONE, 0), make("1", S1, NONE, 0), call("1", S0, S1)], [end_call("1")]),
    "a condition lapses that came later": (
        [
            *BELOW_D1,
            make("1", S0, frozenset({ROOT, USED}), 0),
            settle,
            make("1", D0, CONDITION, 0),
            settle,
            remove("1", "images/a"),
            settle,
        ],
        [later(3)],
    ),
    "a condition lapses that a new snapshot met": (
        [
            *BELOW_D1,
            make("1", D0, CONDITION, 0),
            settle,
            make("1", S0, frozenset({ROOT, USED}), 0),
            settle,
            remove("1", "images/a"),
            settle,
        ],
        [later(3)],
    ),
    "a condition lapses that a use met": (
        [
            *BELOW_D1,
            make("1", D0, CONDITION, 0),
            make("1", S0, frozenset({ROOT}), 0),
            settle,
            make("1", S0, frozenset({ROOT, USED}), 0),
            settle,
            remove("1", "images/a"),
            settle,
        ],
        [later(3)],
    ),
    "a condition is met no more": (
        [make("1", D0, CONDITION, 0), make("1", S0, frozenset({ROOT, USED}), 0)],
        [make("1", S0, frozenset({ROOT}), 0)],
    ),
    "a flat lease keeps what referred to it": (
        [
            *BELOW_D1,
            make("1", "leases/l", frozenset({Label("flat")}), 0),
            hold("1", "leases/l", D1, True),
        ],
        [remove("1", "images/a")],
    ),
    "a flat lease keeps the image whose target referred to it": (
        [
            make("1", D0, NONE, 0),
            make("1", D1, frozenset({Label("ref", D0)}), 0),
            make("1", "images/a", frozenset({Label("expire", hours=2)}), 1),
            make("1", "leases/l", frozenset({Label("flat")}), 0),
            hold("1", "leases/l", "images/a", True),
        ],
        [later(3)],
    ),
    "a flat lease keeps the child of a snapshot that referred to it": (
        [
            make("1", D0, NONE, 0),
            make("1", S0, frozenset({Label("ref", D0)}), 0),
            make("1", S1, NONE, 1),
            make("1", "containers/c", NONE, 2),
            make("1", "leases/l", frozenset({Label("flat")}), 0),
            hold("1", "leases/l", S1, True),
        ],
        [remove("1", "containers/c")],
    ),
    "a flat lease keeps what a blob referred to that is removed": (
        [
            make("1", D0, NONE, 0),
            make("1", D1, frozenset({Label("ref", D0)}), 0),
            make("1", D2, frozenset({Label("ref", D1)}), 0),
            make("1", "images/a", NONE, 2),
            make("1", "leases/l", frozenset({Label("flat")}), 0),
            hold("1", "leases/l", D1, True),
        ],
        [remove("1", "images/a")],
    ),
    "the snapshot of a condition is gone": (
        [
            make("1", D0, CONDITION, 0),
            make("1", S0, frozenset({USED}), 0),
            make("1", "leases/l", NONE, 0),
            hold("1", "leases/l", S0, True),
        ],
        [remove("1", S0)],
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_garbage_is_noted_however_it_comes_about(database: sqlite3.Connection, way: str) -> None:
    """One change makes garbage of what was alive; a collection that looks only at candidates finds it."""
    clear(database)
    world = World()
    before, change = WAYS[way]
    for step in [*before, settle]:
        step(world, database)
    recorded = sum(len(space.records) for space in world.spaces.values())
    for step in change:
        step(world, database)
    marked = fullmark.mark(database, moment(world.hours), pace=False)

    assert marked.missed == []
    assert marked.dead > 0
    settle(world, database)
    assert sum(len(space.records) for space in world.spaces.values()) <= recorded
