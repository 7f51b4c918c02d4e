"""A back end as the check sees it: what it holds, how it is called, and who else may be at work on an object."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from carina.content import ContentStore
from carina.digest import Digest
from carina.integrity import Integrity
from carina.snapshots import Snapshotter
from metadatad.claims import Claims
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
