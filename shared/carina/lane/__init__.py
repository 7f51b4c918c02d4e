"""The descriptor lane as services hand it on: tokens, which whoever needs the bytes redeems at the store itself.

`carina.content.DescriptorLane` is the same with descriptors, for the store and for the one who needs the bytes.
"""

from dataclasses import dataclass
from typing import Protocol

from carina.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """Where and with what a descriptor is to be had, once and soon (`carina.rpc.lane.redeem`)."""

    address: str
    token: bytes
    size: int = 0
    """Bytes in the blob, or bytes that the ingest holds already."""


class TokenLane(Protocol):
    async def blob_token(self, digest: Digest) -> Token:
        """A token for a read-only descriptor of a blob. Raises NotFound, or Unimplemented without a lane."""

    async def ingest_token(
        self, ref: str, *, total: int = 0, expected: Digest | None = None, offset: int | None = None
    ) -> Token:
        """A token for the write end of a pipe into an ingest (see `DescriptorLane.open_ingest`).

        Raises:
            AlreadyExists: a blob with the expected digest is there.
            Unavailable: somebody else writes to this ref.
            Unimplemented: there is no lane.
        """
