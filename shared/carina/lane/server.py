"""Serves the descriptor lane of a store that gets its tokens from somewhere else."""

from carina.api.carina.content.v1 import (
    LaneBase,
    OpenBlobRequest,
    OpenBlobResponse,
    OpenIngestRequest,
    OpenIngestResponse,
)
from carina.digest import Digest
from carina.lane import TokenLane


class TokenLaneService(LaneBase):
    def __init__(self, lane: TokenLane) -> None:
        self._lane = lane

    async def open_blob(self, message: OpenBlobRequest) -> OpenBlobResponse:
        token = await self._lane.blob_token(Digest(message.digest))
        return OpenBlobResponse(address=token.address, token=token.token, size=token.size)

    async def open_ingest(self, message: OpenIngestRequest) -> OpenIngestResponse:
        expected = Digest(message.expected) if message.expected else None
        token = await self._lane.ingest_token(
            message.ref, total=message.total, expected=expected, offset=message.offset
        )
        return OpenIngestResponse(address=token.address, token=token.token, offset=token.size)
