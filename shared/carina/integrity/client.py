"""The integrity of a content store at the other end of a channel."""

from carina.api.carina.content.v1 import IntegrityStub, VerifyRequest
from carina.digest import Digest
from carina.integrity import Verdict
from carina.rpc.client import Channel


class RemoteIntegrity:
    """`Integrity` over a socket. A peer that can't look by itself answers Unimplemented."""

    def __init__(self, channel: Channel) -> None:
        self._stub = IntegrityStub(channel)

    async def verify(self, digest: Digest, *, quarantine: bool = False) -> Verdict:
        answer = await self._stub.verify(VerifyRequest(digest=digest, quarantine=quarantine))
        return Verdict(size=answer.size, problem=answer.problem, quarantined=answer.quarantined)
