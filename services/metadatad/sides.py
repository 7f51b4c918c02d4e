"""A back end as the check sees it: what it holds, how it is called, and who else may be at work on an object."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from carina.content import ContentStore
from carina.content.client import RemoteContentStore
from carina.digest import Digest
from carina.integrity import Integrity
from carina.integrity.client import RemoteIntegrity
from carina.snapshots import Snapshotter
from metadatad.claims import Claims
from metadatad.entries import Entry
from metadatad.peers import Peer
from metadatad.removal import Remover

NOT_OURS: Final = "it is in a back end of somebody else's, which may hold it for others"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentSide:
    store: ContentStore
    integrity: Integrity
    peer: Peer
    claims: Claims
    remover: Remover
    own: bool
    """Whether nobody but us puts things there."""
    forget: Callable[[Digest], None]
    """Told of a blob whose bytes were put aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSide:
    name: str
    snapshotter: Snapshotter
    peer: Peer
    claims: Claims
    remover: Remover
    own: bool


def of_content(entry: Entry, claims: Claims, forget: Callable[[Digest], None]) -> ContentSide:
    assert entry.remover is not None
    return ContentSide(
        store=RemoteContentStore(entry.channel),
        integrity=RemoteIntegrity(entry.channel),
        peer=entry.peer,
        claims=claims,
        remover=entry.remover,
        own=entry.stated.own,
        forget=forget,
    )


def of_snapshotters(entries: Iterable[Entry], claims: Claims) -> dict[str, SnapshotSide]:
    return {
        entry.stated.name: SnapshotSide(
            name=entry.stated.name,
            snapshotter=entry.snapshotter.backend,
            peer=entry.peer,
            claims=claims,
            remover=entry.remover,
            own=entry.stated.own,
        )
        for entry in entries
        if entry.snapshotter is not None and entry.remover is not None
    }
