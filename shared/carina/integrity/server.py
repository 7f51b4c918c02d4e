"""Serves any store that can look at its blobs."""

from carina.api.carina.content.v1 import IntegrityBase, VerifyRequest, VerifyResponse
from carina.digest import Digest
from carina.integrity import Integrity


class IntegrityService(IntegrityBase):
    def __init__(self, integrity: Integrity) -> None:
        self._integrity = integrity

    async def verify(self, message: VerifyRequest) -> VerifyResponse:
        found = await self._integrity.verify(Digest(message.digest), quarantine=message.quarantine)
        return VerifyResponse(problem=found.problem, size=found.size, quarantined=found.quarantined)
