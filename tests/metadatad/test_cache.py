"""What is kept in memory has a limit in bytes, whatever is asked for."""

import sys

from carina.content import Info
from carina.digest import Digest
from metadatad.cache import Bounded
from metadatad.content import ENTRY, _weight


def test_the_longest_unused_goes_first() -> None:
    """Values are kept up to the limit; reading one makes it last longer; one above the limit is not kept."""
    kept: Bounded[str, bytes] = Bounded(10, weigh=len)
    for key in "abc":
        kept.put(key, b"123", generation=kept.generation)
    assert kept.get("a") == b"123"
    kept.put("d", b"1234", generation=kept.generation)
    assert [key for key in "abcd" if kept.get(key)] == ["a", "c", "d"]
    kept.put("e", b"x" * 11, generation=kept.generation)
    assert kept.get("e") is None


def test_a_value_read_before_a_change_is_not_kept() -> None:
    """What was read while something else was forgotten may be out of date."""
    kept: Bounded[str, bytes] = Bounded(10, weigh=len)
    before = kept.generation
    kept.forget("other")
    kept.put("a", b"1", generation=before)
    assert kept.get("a") is None


def test_records_weigh_what_they_take() -> None:
    """Labels count: the weight of a record is not below the memory of its labels, nor far above."""
    labels = {f"containerd.io/gc.ref.content.l.{number}": "sha256:" + "0" * 64 for number in range(1000)}
    taken = sys.getsizeof(labels) + sum(sys.getsizeof(text) for entry in labels.items() for text in entry)
    assert taken * 0.7 < _weight(Info(digest=Digest.of(b""), labels=labels)) - ENTRY < taken * 1.5
