"""Tokens of a store at the other end of a channel."""

from carina.api.carina.content.v1 import LaneStub, OpenBlobRequest, OpenIngestRequest
from carina.digest import Digest
from carina.lane import Token
from carina.rpc.client import Channel


class RemoteTokenLane:
    def __init__(self, channel: Channel) -> None:
        self._stub = LaneStub(channel)

    async def blob_token(self, digest: Digest) -> Token:
        answer = await self._stub.open_blob(OpenBlobRequest(digest=digest))
        return Token(address=answer.address, token=answer.token, size=answer.size)

    async def ingest_token(
        self, ref: str, *, total: int = 0, expected: Digest | None = None, offset: int | None = None
    ) -> Token:
        request = OpenIngestRequest(ref=ref, total=total, expected=expected or "", offset=offset)
        answer = await self._stub.open_ingest(request)
        return Token(address=answer.address, token=answer.token, size=answer.offset)
