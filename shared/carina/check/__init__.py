"""Records compared with what the stores hold, in both directions, and what is put right."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be."""

    kind: str
    """`missing`    recorded, and not in the store
    `orphaned`   in the store, and not (or no longer) recorded; no collection touches it
    `damaged`    its bytes are not those of its digest
    `size`       the record gives another size than the store
    `mismatch`   kind or parent of a snapshot differ between record and snapshotter
    `dangling`   an image's target, a container's snapshot or a snapshot's parent is not recorded
    `stuck`      an ingest that its store no longer has
    `tombstone`  what was to be removed from a store long ago is still noted
    `intent`     a call to a snapshotter that ended long ago is still noted
    `edges`      the references of a record are not those that its labels state
    `database`   the database's own file is damaged"""
    namespace: str = ""
    """Empty for what belongs to none."""
    type: str
    """`content`, `ingest`, `image`, `container`, `sandbox`, `lease`, `snapshot/NAME` or `database`."""
    id: str
    """Digest, ref, name, key or path."""
    detail: str = ""
    """What is wrong, in a sentence."""
    done: str = ""
    """What was done about it; empty for nothing."""
    settled: bool = False
    """Whether it is right now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchecked:
    """A part that could not be looked at. It may be right or wrong."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What was looked at. Comes last."""

    content: int = 0
    """Records of content that were compared with their store."""
    snapshots: int = 0
    records: int = 0
    """Records of every kind whose references were compared with their labels."""
    hashed: int = 0
    """Blobs that were read again."""
    hashed_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    repair: bool = False
    """Put right what can be without removing anything that a record refers to."""
    hash: bool = True
    """Read all content again."""
    remove_orphans: bool = False
    """With `repair`: remove what is in our own stores and in no record."""


class Checker(Protocol):
    def check(self, options: Options) -> AsyncGenerator[Finding | Unchecked | Summary, None]:
        """Check every namespace and every back end while they are in use.

        Raises:
            FailedPrecondition: another check is running.
        """
