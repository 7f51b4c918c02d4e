"""Serves any image store over gRPC."""

from dataclasses import replace
from typing import Final, Protocol, runtime_checkable

from grpclib.const import Handler
from grpclib.server import Stream

from carina.api.containerd.services.images.v1 import (
    CreateImageRequest,
    CreateImageResponse,
    DeleteImageRequest,
    GetImageRequest,
    GetImageResponse,
    ImagesBase,
    ListImagesRequest,
    ListImagesResponse,
    UpdateImageRequest,
    UpdateImageResponse,
)
from carina.api.google.protobuf import Empty
from carina.images import ImageStore
from carina.images.client import descriptor_from_wire, descriptor_to_wire, from_wire, to_wire
from carina.rpc.codec import Encoded
from carina.rpc.lists import encoded

_LIST: Final = "/containerd.services.images.v1.Images/List"


@runtime_checkable
class Listing(Protocol):
    """What a store with very many images offers besides."""

    async def listing(self) -> bytes:
        """Every image, as an encoded ListImagesResponse."""


class ImagesService(ImagesBase):
    def __init__(self, store: ImageStore) -> None:
        self._store = store

    def __mapping__(self) -> dict[str, Handler]:
        mapping = super().__mapping__()
        mapping[_LIST] = mapping[_LIST]._replace(func=self._list)
        return mapping

    async def get(self, message: GetImageRequest) -> GetImageResponse:
        return GetImageResponse(image=to_wire(await self._store.get(message.name)))

    async def _list(self, stream: Stream[ListImagesRequest, ListImagesResponse | Encoded]) -> None:
        request = await stream.recv_message()
        assert request is not None
        if not request.filters and isinstance(self._store, Listing):
            await stream.send_message(Encoded(await self._store.listing()))
        else:
            found = await self._store.list(request.filters)
            answer = await encoded(found, lambda some: ListImagesResponse(images=[to_wire(image) for image in some]))
            await stream.send_message(answer)

    async def create(self, message: CreateImageRequest) -> CreateImageResponse:
        return CreateImageResponse(image=to_wire(await self._store.create(from_wire(message.image))))

    async def update(self, message: UpdateImageRequest) -> UpdateImageResponse:
        fields = message.update_mask.paths if message.update_mask else []
        wire = message.image
        if wire is not None and fields and "target" not in fields and not (wire.target and wire.target.digest):
            # Clients leave out what the mask does not name; what was there stays.
            target = descriptor_to_wire((await self._store.get(wire.name)).target)
            wire = replace(wire, target=replace(target, annotations=wire.target.annotations if wire.target else {}))
        return UpdateImageResponse(image=to_wire(await self._store.update(from_wire(wire), fields)))

    async def delete(self, message: DeleteImageRequest) -> Empty:
        target = descriptor_from_wire(message.target) if message.target and message.target.digest else None
        await self._store.delete(message.name, sync=message.sync, target=target)
        return Empty()
