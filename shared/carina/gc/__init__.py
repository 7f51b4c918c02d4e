"""Garbage collection on demand, what a run removed, and why it removes what it does."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

CHAINS: Final = 20
"""Chains in an explanation, unless the caller wants another number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    type: str
    """`content`, `ingest`, `image`, `lease` or `snapshot/NAME`."""
    objects: int
    bytes: int = 0
    """Of content; 0 for the other types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """One run of the collector."""

    seconds: float
    lock_seconds: float
    """How much of it held the database's writer, commits included."""
    removed: Sequence[Removed] = ()
    candidates: int = 0
    """Objects that were looked at because something about them had changed."""
    missed: int = 0
    """With `full`: garbage that was no candidate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What the collector has done since the service started, and what it has still to do."""

    since: datetime
    collections: int = 0
    failures: int = 0
    seconds: float = 0.0
    lock_seconds: float = 0.0
    """How much of it held the database's writer, commits included."""
    longest_lock_seconds: float = 0.0
    """The longest transaction."""
    collected_at: datetime | None = None
    removed: Sequence[Removed] = ()
    candidates: int = 0
    """What is to be looked at by the next collection."""
    next_candidate: datetime | None = None
    """When something expires that has not yet."""
    remaining: Sequence[Removed] = ()
    """What back ends are still to remove."""
    checks: int = 0
    """Full marks."""
    check_seconds: float = 0.0
    missed: int = 0
    """Garbage that full marks found and collections had missed: 0, unless something is wrong."""
    checked_at: datetime | None = None
    """The last full mark, of this run of the service or an earlier one."""


class Collector(Protocol):
    async def run(self, *, sync: bool = False, full: bool = False) -> Collection:
        """Collect now; with `sync`, return when the disk is clean rather than when the records are gone.

        With `full`, mark everything first, rather than look only at what has changed.
        """

    async def statistics(self) -> Statistics: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Doomed:
    """An object that a collection would remove."""

    namespace: str
    type: str
    """As in `Removed`."""
    id: str
    """Digest, ref, name or key."""
    bytes: int = 0
    """Of content that comes back on the disk: 0 where another namespace keeps the blob, and for the other types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What would go if the record of one image, and nothing else, were removed."""

    image: str
    bytes: int
    """Of content that comes back on the disk."""
    content: int
    """Number of blobs whose record goes."""
    snapshots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """An object that is kept for its own sake."""

    kind: str
    """`image`, `container`, `sandbox`, `lease`, `ingest`: the record itself. `label`: its label `by`.
    `call`: a call to the snapshotter that is under way needs it."""
    type: str
    id: str
    by: str = ""
    until: datetime | None = None
    """When it stops to be a root, if it does so by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One reference, from the object before it in the chain."""

    type: str
    id: str
    by: str
    """The label that makes the reference; or, of a record, `target`, `snapshot`, `expected`, `parent`, `resource`,
    `resource (flat)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    root: Root
    hops: Sequence[Hop] = ()
    """None where the object itself is the root; the last one leads to the object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why an object is kept, or that it is not."""

    chains: Sequence[Chain] = ()
    """The shortest chain from each root that keeps the object, the shortest first. None: nothing keeps it."""
    more: int = 0
    """How many more roots keep it than there are chains here."""
    since: datetime | None = None
    """Where nothing keeps it: when it, or what refers to it, last lost something that may have kept it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageUsage:
    """What one image takes."""

    image: str
    content: int
    """Bytes of content that it keeps."""
    unique: int
    """Of them, those that no other image of the namespace keeps."""
    shared: int
    snapshots: int = 0
    """Number of snapshots that it keeps."""
    snapshot_bytes: int = 0
    """What the snapshotters have recorded of their size."""
    unmeasured: int = 0
    """Number of snapshots whose size no snapshotter told."""


class Explainer(Protocol):
    """What the collector would do and why. Nothing here changes anything."""

    async def plan(self, *, if_removed: str = "") -> Sequence[Doomed]:
        """What a collection would remove now from every namespace, or if that image of this namespace were gone.

        Raises:
            NotFound: no such image.
        """

    async def plan_images(self) -> Sequence[Release]:
        """What would go with each image of the namespace."""

    async def why(self, type: str, id: str, *, limit: int = CHAINS) -> Explanation:
        """What keeps an object of the namespace: `content`, `ingest`, `image`, `lease` or `snapshot/NAME`.

        Raises:
            NotFound: no such object.
            InvalidArgument: no such type.
        """

    async def usage(self) -> Sequence[ImageUsage]:
        """What each image of the namespace takes. Snapshots are asked for at their snapshotters, where those answer."""
