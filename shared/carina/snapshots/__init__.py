"""Snapshots: file system trees in chains, each either committed and immutable, active, or a read-only view.

A snapshotter neither moves data nor mounts: it returns mounts, and whoever asked performs them.
"""

import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from carina.mount import Mount


class Kind(enum.Enum):
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What is known of a snapshot."""

    name: str
    """The key of an active snapshot or view, the name of a committed one: one name space."""
    kind: Kind = Kind.COMMITTED
    parent: str = ""
    """Name of a committed snapshot; empty at the bottom of a chain."""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a snapshot itself takes on disk, without its parents."""

    size: int
    """Bytes allocated."""
    inodes: int


class Snapshotter(Protocol):
    """The interface of a snapshotter, built-in or plugged in.

    Keys and names are opaque and never path components. Every method is safe to repeat after a crash.
    """

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Make an active snapshot on top of `parent` and return the mounts of its tree.

        Raises:
            AlreadyExists: the key is in use (or, for a remote snapshotter, the layer is there already).
            NotFound: no such parent.
            InvalidArgument: the parent is not committed.
        """

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Like `prepare`, read-only: it can't be committed."""

    async def mounts(self, key: str) -> list[Mount]:
        """The mounts of an active snapshot or view, the same ones every time. Raises NotFound."""

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        """Make the active snapshot `key` immutable under `name`; `key` is free again.

        With `parent` (capability `rebase`) a snapshot prepared without parent is put on top of that one.

        Raises:
            NotFound: no such key.
            AlreadyExists: the name is in use.
            FailedPrecondition: the snapshot is a view or committed already.
        """

    async def remove(self, key: str) -> None:
        """Remove a snapshot of any kind.

        Raises:
            NotFound: no such snapshot.
            FailedPrecondition: other snapshots stand on it.
        """

    async def stat(self, key: str) -> Info:
        """Raises NotFound."""

    async def update(self, info: Info, fields: Sequence[str] = ()) -> Info:
        """Change labels. `fields`: `labels` or `labels.KEY`; all if empty.

        Raises:
            NotFound: no such snapshot.
            InvalidArgument: a field that can't be changed.
        """

    def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        """Every snapshot that matches one of the filters; all without filters."""

    async def usage(self, key: str) -> Usage:
        """What the snapshot takes itself. Raises NotFound."""

    async def cleanup(self) -> None:
        """Free on disk what removed snapshots left behind, and return when that is done.

        Raises:
            Unimplemented: this snapshotter leaves nothing behind.
        """

    async def close(self) -> None:
        """Release what the snapshotter holds open. Snapshots stay."""
