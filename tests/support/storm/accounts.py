"""What clients were promised in a storm, and what became of their calls."""

import collections
from collections.abc import Hashable
from dataclasses import dataclass, field

from carina.errors import CarinaError
from support.ledger import Key, Ledger

OWN_FAULT = ("Internal", "CarinaError", "DataLoss")
"""Errors that no fault from outside explains."""


@dataclass
class Run:
    """One container from its making to its removal."""

    id: str
    namespace: str
    status: int
    """With which it ends if nobody kills it."""
    started: bool = False
    """Whether its start was acknowledged."""
    seen: int | None = None
    """The exit status that a client was told."""
    removed: bool = False
    excused: bool = False
    """Its shim or its machine was taken from it: it may end by a signal, or be gone."""

    def allows(self, status: int) -> bool:
        return status == self.status or (self.excused and status in (137, 255))


@dataclass
class Accounts:
    """Shared by the clients of a storm."""

    ledger: Ledger = field(default_factory=Ledger)
    runs: list[Run] = field(default_factory=list)
    acknowledged: int = 0
    by_kind: collections.Counter[str] = field(default_factory=collections.Counter)
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    """Errors by class, and for those of `OWN_FAULT` by text."""
    lost: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    doubtful: set[Key] = field(default_factory=set)
    """Objects of which the last call has failed: nobody touches them before they were looked at."""

    def done(self, kind: str) -> None:
        self.acknowledged += 1
        self.by_kind[kind] += 1

    def failed(self, kind: str, error: Exception) -> None:
        name = type(error).__name__
        text = f": {error}"[:300] if name in OWN_FAULT or not isinstance(error, CarinaError) else ""
        self.refused[f"{kind} {name}{text}"] += 1

    def settle(self, found: dict[Key, Hashable]) -> None:
        """What was found is what is. What is not there any more is forgotten."""
        self.ledger.settle({key: value for key, value in found.items() if value is not None})
        self.doubtful.clear()
