"""Bytes near to those of a corpus, for Hypothesis to choose and to make small."""

from collections.abc import Sequence
from typing import Final

from hypothesis import strategies as st

MOST: Final = 8
"""Changes at once."""
Change = tuple[int, int, int, bytes]


def changed(data: bytes, changes: Sequence[Change]) -> bytes:
    """Each change: what to do, where, how much, and bytes to do it with."""
    for kind, where, count, piece in changes:
        at = where % (len(data) + 1)
        if kind == 0:
            data = data[:at] + piece + data[at:]
        elif kind == 1:
            data = data[:at] + piece + data[at + len(piece) :]
        elif kind == 2:
            data = data[:at] + data[at + count :]
        elif kind == 3:
            data = data[: at + count] + data[at:]
        else:
            data = data[:at]
    return data


def near(corpus: Sequence[bytes], tokens: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    pieces = st.sampled_from(tokens) | st.binary(min_size=1, max_size=8)
    change = st.tuples(st.integers(0, 4), st.integers(0, 1 << 16), st.integers(1, 600), pieces)
    mutated = st.builds(changed, st.sampled_from(corpus), st.lists(change, max_size=MOST))
    return mutated | st.binary(max_size=200)
