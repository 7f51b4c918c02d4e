"""Labels as references: every form that containerd knows, and what is not one."""

from datetime import UTC, datetime, timedelta

import pytest

from carina.sqlite import from_time, to_time
from metadatad import edges
from metadatad.edges import Edge, Pin

NODE = "content/sha256:x"


@pytest.mark.parametrize(
    ("label", "value", "expected"),
    [
        ("gc.ref.content", "d", Edge(NODE, "content/d", "ref")),
        ("gc.ref.content.config", "d", Edge(NODE, "content/d", "ref")),
        ("gc.ref.content/l.0", "d", Edge(NODE, "content/d", "ref")),
        ("gc.ref.image.x", "docker.io/a:b", Edge(NODE, "images/docker.io/a:b", "ref")),
        ("gc.ref.snapshot.overlayfs", "k", Edge(NODE, "snapshots/overlayfs/k", "ref")),
        ("gc.ref.snapshot.overlayfs/0", "k", Edge(NODE, "snapshots/overlayfs/k", "ref")),
        ("gc.bref.content", "d", Edge("content/d", NODE, "bref")),
        ("gc.bref.image.a", "i", Edge("images/i", NODE, "bref")),
        ("gc.bref.container", "c", Edge("containers/c", NODE, "bref")),
        ("gc.bref.snapshot.native/x", "k", Edge("snapshots/native/k", NODE, "bref")),
        ("gc.cond.snapshot.overlayfs", "usedat<1h|k", Edge("snapshots/overlayfs/k", NODE, "cond", "usedat<1h")),
    ],
)
def test_label_is_a_reference(label: str, value: str, expected: Edge) -> None:
    """Each label states one edge."""
    assert edges.of_labels(NODE, {f"containerd.io/{label}": value}) == [expected]


@pytest.mark.parametrize(
    "label",
    ["gc.ref.contents", "gc.ref.snapshot", "gc.ref.container", "gc.bref.imagex", "gc.cond.snapshot.s", "other"],
)
def test_label_is_none(label: str) -> None:
    """What only looks like a reference is ignored."""
    assert edges.of_labels(NODE, {f"containerd.io/{label}": "x"}) == []


def test_pins() -> None:
    """gc.root and gc.expire pin an object; an expiry that can't be read is ignored."""
    root, expiry = {"containerd.io/gc.root": "now"}, {"containerd.io/gc.expire": "1970-01-01T00:00:01Z"}

    assert edges.pins_of_labels(root) == [Pin("root")]
    assert edges.pins_of_labels(expiry) == [Pin("expire", 1_000_000)]
    assert edges.pins_of_labels({"containerd.io/gc.expire": "tomorrow"}) == []


def test_conditions() -> None:
    """A conditional reference holds by the age of a use; of several uses one is enough."""
    now = datetime.now(UTC)
    used = [now - timedelta(minutes=90)]

    assert edges.holds("usedat<2h", used, now)
    assert not edges.holds("usedat<1h", used, now)
    assert edges.holds("usedat>1h30s", used, now)
    assert not edges.holds("usedat<2h", [], now)
    assert edges.holds("usedat>1h", [*used, now], now)


def test_condition_lapses() -> None:
    """From the moment that `lapses` names a condition holds no more, and just before it still does."""
    used = datetime(2026, 1, 1, tzinfo=UTC)
    lapse = edges.lapses("usedat<1h30m", [used, used - timedelta(hours=1)])

    assert lapse == from_time(used + timedelta(minutes=90))
    assert not edges.holds("usedat<1h30m", [used], to_time(lapse))
    assert edges.holds("usedat<1h30m", [used], to_time(lapse - 1))
    assert edges.lapses("usedat>1h", [used]) is None


@pytest.mark.parametrize("node", ["snapshots/s/k", "leases/l", "containers/c"])
def test_condition_is_stated_by_content_and_images_alone(node: str) -> None:
    """As in containerd, nothing else has conditional references."""
    assert edges.of_labels(node, {"containerd.io/gc.cond.snapshot.s": "usedat<1h|k"}) == []


def test_labels_of_leases_are_no_references() -> None:
    """As in containerd, a lease keeps its resources, whatever its labels say."""
    assert edges.of_labels("leases/l", {"containerd.io/gc.ref.content": "d", "containerd.io/gc.bref.image": "i"}) == []


@pytest.mark.parametrize(
    "text",
    ["2026-01-01", "20260101T000000Z", "2026-01-01T00:00:00", "2026-02-31T00:00:00Z", "0001-01-01T00:00:00+23:00"],
)
def test_what_is_no_time(text: str) -> None:
    """What RFC 3339 does not allow, or nobody can compute with, is no time."""
    assert edges.parse_time(text) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("1h30m", 5400.0), ("100ms", 0.1), ("0", 0.0), ("-2s", -2.0), ("1.5h", 5400.0), ("1", None), ("h", None)),
        *(("9" * 30 + "h", None), ("1h" * 60, None), ("+-1s", None)),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    """Durations are read as Go writes them."""
    assert edges.parse_duration(text) == seconds


def test_weaker() -> None:
    """Labels are weaker where a reference or a pin is gone, not where one came."""
    old, new = {"containerd.io/gc.ref.content.0": "a"}, {"containerd.io/gc.ref.content.1": "b"}

    assert edges.weaker(NODE, old, new)
    assert not edges.weaker(NODE, old, old | new)
    assert edges.weaker(NODE, {"containerd.io/gc.root": "x"}, {})
