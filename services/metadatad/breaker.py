"""What is known of a back end that does not answer: whoever calls it next is told at once instead of waiting as well.

closed   calls go through; opens when for as long as an answer may take calls were made and none was answered
open     calls fail at once; after a pause one is let through, as `metadatad.backends` does with its probe.
         Any answer closes it, also a refusal; without one the next pause begins.
"""

import math
import time
from collections.abc import Callable
from typing import Final

from carina.errors import Unavailable

PAUSE_SECONDS: Final = 5.0
"""How long all calls fail after one that was not answered."""


class Breaker:
    """The state of one back end. Moments are those of `time.monotonic`."""

    def __init__(self, patience: float, *, pause: float = PAUSE_SECONDS) -> None:
        self.on_open: Callable[[], None] = lambda: None
        self._patience, self._pause = patience, pause
        self.dead = False
        """Whether not even the last probe was answered."""
        self.recovered = -math.inf
        """When it answered again, the last time that it had been silent."""
        self._answered = 0.0
        self._silent: float | None = None
        """When the first call began that was not answered, of those after the last answer."""
        self._until: float | None = None

    @property
    def open(self) -> bool:
        return self._until is not None

    @property
    def last_answer(self) -> float:
        return self._answered

    def check(self, name: str, seconds: float) -> None:
        """Begin a call that may take so many seconds.

        Raises:
            Unavailable: the back end did not answer lately, and it is not time to try again.
        """
        if self._until is None:
            return
        now = time.monotonic()
        if now < self._until:
            raise Unavailable(f"{name} does not answer since {now - (self._silent or now):.3g} s")
        self._until = now + seconds

    def answered(self) -> None:
        self._answered = time.monotonic()
        if self._silent is not None:
            self.recovered = self._answered
        self._silent = self._until = None

    def unanswered(self, begun: float) -> None:
        """A call that began then was not answered in its time."""
        if self._answered > begun:
            return
        now = time.monotonic()
        self._silent = begun if self._silent is None else min(self._silent, begun)
        if self.open:
            self._until = now + self._pause
        elif now - self._silent >= self._patience:
            self._until = now + self._pause
            self.on_open()
