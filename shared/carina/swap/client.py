"""The swapper over a socket."""

from collections.abc import AsyncIterator, Sequence

from carina.api.carina.swap.v1 import MissingRequest, SwapRequest, SwapStub
from carina.api.carina.swap.v1 import Place as WirePlace
from carina.context import no_deadline
from carina.digest import Digest
from carina.errors import Internal
from carina.rpc.client import Channel
from carina.swap import Blob, Lacking, Place, Snapshot


def place_to_wire(place: Place) -> WirePlace:
    return WirePlace(address=place.address, namespace=place.namespace, snapshotter=place.snapshotter, lease=place.lease)


def place_from_wire(wire: WirePlace) -> Place:
    return Place(address=wire.address, namespace=wire.namespace, snapshotter=wire.snapshotter, lease=wire.lease)


class RemoteSwapper:
    """`Swapper` of the service at the other end of a channel. Its calls last as long as their work."""

    def __init__(self, channel: Channel) -> None:
        self._stub = SwapStub(channel)

    async def swap(self, services: Sequence[str], to: Place | None) -> Sequence[str]:
        request = SwapRequest(services=list(services), to=None if to is None else place_to_wire(to))
        with no_deadline():
            return tuple((await self._stub.swap(request)).changes)

    async def missing(self, service: str, to: Place) -> AsyncIterator[Lacking]:
        request = MissingRequest(service=service, to=place_to_wire(to))
        async for answer in self._stub.missing(request):
            if answer.from_ is None:
                raise Internal(f"which objects of {service} are missing was answered without their place")
            yield Lacking(
                source=place_from_wire(answer.from_),
                blobs=[Blob(digest=Digest(blob.digest), size=blob.size) for blob in answer.blobs],
                snapshots=[
                    Snapshot(name=found.name, parent=found.parent, labels=dict(found.labels))
                    for found in answer.snapshots
                ],
            )
