"""Serves any image store over gRPC."""

from dataclasses import replace

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


class ImagesService(ImagesBase):
    def __init__(self, store: ImageStore) -> None:
        self._store = store

    async def get(self, message: GetImageRequest) -> GetImageResponse:
        return GetImageResponse(image=to_wire(await self._store.get(message.name)))

    async def list(self, message: ListImagesRequest) -> ListImagesResponse:
        return ListImagesResponse(images=[to_wire(image) for image in await self._store.list(message.filters)])

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
