"""Serves any swapper over gRPC."""

from collections.abc import AsyncIterator

from carina.api.carina.swap.v1 import Blob as WireBlob
from carina.api.carina.swap.v1 import MissingRequest, MissingResponse, SwapBase, SwapRequest, SwapResponse
from carina.api.carina.swap.v1 import Snapshot as WireSnapshot
from carina.errors import InvalidArgument
from carina.swap import Swapper
from carina.swap.client import place_from_wire, place_to_wire


class SwapService(SwapBase):
    def __init__(self, swapper: Swapper) -> None:
        self._swapper = swapper

    async def swap(self, message: SwapRequest) -> SwapResponse:
        if not message.services:
            raise InvalidArgument("the request names no service")
        to = None if message.to is None else place_from_wire(message.to)
        return SwapResponse(changes=list(await self._swapper.swap(message.services, to)))

    async def missing(self, message: MissingRequest) -> AsyncIterator[MissingResponse]:
        if message.to is None:
            raise InvalidArgument("the request names no place")
        async for found in self._swapper.missing(message.service, place_from_wire(message.to)):
            yield MissingResponse(
                from_=place_to_wire(found.source),
                blobs=[WireBlob(digest=blob.digest, size=blob.size) for blob in found.blobs],
                snapshots=[
                    WireSnapshot(name=one.name, parent=one.parent, labels=dict(one.labels)) for one in found.snapshots
                ],
            )
