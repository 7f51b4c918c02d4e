"""A bounded map in memory of what was used last, for values that are stored elsewhere."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Bounded(Generic[K, V]):
    """Keeps values up to a total weight. A value that was read before a change is not kept after it."""

    def __init__(self, limit: int, *, weigh: Callable[[V], int] = lambda _: 1) -> None:
        self.generation = 0
        """Counts changes: take it before reading a value that is to be kept."""
        self._limit = limit
        self._weigh = weigh
        self._weight = 0
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V, *, generation: int) -> None:
        """Keep a value, unless something has changed since `generation`."""
        if generation != self.generation:
            return
        self._drop(key)
        self._values[key] = value
        self._weight += self._weigh(value)
        while self._weight > self._limit:
            self._drop(next(iter(self._values)))

    def forget(self, key: K) -> None:
        self.generation += 1
        self._drop(key)

    def clear(self) -> None:
        self.generation += 1
        self._values.clear()
        self._weight = 0

    def _drop(self, key: K) -> None:
        value = self._values.pop(key, None)
        if value is not None:
            self._weight -= self._weigh(value)
