"""What a service has acknowledged, and so what must be found after it was cut off.

Every step names the objects that it changes, and which values each may have afterwards; None is absence.
An object that no unfinished step concerns has a value that the last acknowledged step allows.
One that an unfinished step concerns has such a value, or one that this step allows: the step happened or it did not.
"""

import contextlib
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
Key = tuple[str, str]
"""Kind and name."""
Values = frozenset[Hashable]
ABSENT: Values = frozenset([None])


def present(value: Hashable) -> Values:
    return frozenset([value])


@dataclass
class _Step:
    values: Values
    begun: int
    done: int | None = None


class Ledger:
    """`mark` tells the present moment as a number that never falls; without, all that matters is the order."""

    def __init__(self, mark: Callable[[], int] = lambda: 0) -> None:
        self._mark = mark
        self._steps: dict[Key, list[_Step]] = {}

    async def step(self, effects: Mapping[Key, Values], call: Awaitable[T]) -> T:
        """Await a call that changes objects, and note when it was acknowledged."""
        with self._noting(effects):
            return await call

    @contextlib.contextmanager
    def _noting(self, effects: Mapping[Key, Values]) -> Iterator[None]:
        steps = {key: _Step(values, self._mark()) for key, values in effects.items()}
        for key, step in steps.items():
            self._steps.setdefault(key, []).append(step)
        yield
        for step in steps.values():
            step.done = self._mark()

    def allowed(self, position: int | None = None) -> dict[Key, Values]:
        """Which values each object may have when everything stops at `position`; None is the end."""
        return {key: _allowed(steps, position) for key, steps in self._steps.items()}

    def at(self, position: int) -> "Ledger":
        """What was promised when everything stopped at `position`, as a ledger of its own."""
        result = Ledger()
        for key, steps in self._steps.items():
            if any(step.begun <= position for step in steps):
                result._steps[key] = [_Step(_allowed(steps, position), 0, 0)]
        return result

    def settle(self, found: Mapping[Key, Hashable]) -> None:
        """Take what was found for what is: after a crash a step that was cut off has happened or not."""
        self._steps = {key: [_Step(present(value), 0, 0)] for key, value in found.items()}

    def acknowledged(self, position: int | None = None) -> int:
        """How many objects are certainly there at `position`."""
        return sum(None not in values for values in self.allowed(position).values())


def _allowed(steps: list[_Step], position: int | None) -> Values:
    result = ABSENT
    for step in steps:
        if position is not None and step.begun > position:
            break
        finished = step.done is not None and (position is None or step.done <= position)
        result = step.values if finished else result | step.values
    return result
