"""A great many names in little memory, only to ask whether one is among them."""

from array import array
from bisect import bisect_left
from hashlib import blake2b
from typing import Final

from carina.errors import ResourceExhausted

MOST: Final = 1 << 24
_BUCKETS: Final = 256


class Names:
    """Eight bytes for each name. Two names are taken for one with a chance of one in 10^7 among a million."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._buckets = [array("Q") for _ in range(_BUCKETS)]
        self._sorted = [True] * _BUCKETS
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, name: str) -> None:
        """Raises ResourceExhausted: there are too many."""
        if self._count >= self._most:
            raise ResourceExhausted(f"there are more than {self._most} objects, more than can be compared")
        number = _number(name)
        self._buckets[number % _BUCKETS].append(number)
        self._sorted[number % _BUCKETS] = False
        self._count += 1

    def __contains__(self, name: str) -> bool:
        number = _number(name)
        index = number % _BUCKETS
        if not self._sorted[index]:
            self._buckets[index] = array("Q", sorted(self._buckets[index]))
            self._sorted[index] = True
        bucket = self._buckets[index]
        at = bisect_left(bucket, number)
        return at < len(bucket) and bucket[at] == number


def _number(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
