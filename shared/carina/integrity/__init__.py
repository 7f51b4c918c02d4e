"""Whether blobs are still what their names say: what a content store offers besides where it can look by itself."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from carina.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a blob's bytes say."""

    size: int = 0
    """Bytes on the disk."""
    problem: str = ""
    """What is wrong; empty where the bytes are those of the digest."""
    quarantined: bool = False
    """Whether the blob was put aside."""


@runtime_checkable
class Integrity(Protocol):
    async def verify(self, digest: Digest, *, quarantine: bool = False) -> Verdict:
        """Read a blob again and hash it; put a damaged one aside if that is asked for, so that it can be written anew.

        Raises:
            NotFound: no such blob.
            Unimplemented: this store can't look by itself.
        """
