"""Garbage collection on demand, and what a run removed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    type: str
    """`content`, `ingest`, `lease` or `snapshot/NAME`."""
    objects: int
    bytes: int = 0
    """Of content; 0 for the other types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """One run of the collector."""

    seconds: float
    lock_seconds: float
    """How much of it held the database's writer."""
    removed: Sequence[Removed] = ()


class Collector(Protocol):
    async def run(self, *, sync: bool = False) -> Collection:
        """Mark and remove now; with `sync`, return when the disk is clean rather than when the records are gone."""
