"""The image store over a socket."""

from collections.abc import Sequence

from carina.api.containerd.services.images.v1 import (
    CreateImageRequest,
    DeleteImageRequest,
    GetImageRequest,
    ImagesStub,
    ListImagesRequest,
    UpdateImageRequest,
)
from carina.api.containerd.services.images.v1 import Image as WireImage
from carina.api.containerd.types import Descriptor as WireDescriptor
from carina.api.google.protobuf import FieldMask
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import InvalidArgument
from carina.images import Image
from carina.rpc.client import Channel


def descriptor_from_wire(wire: WireDescriptor | None) -> Descriptor:
    """Raises InvalidArgument: there is none, or its digest is not valid."""
    if wire is None:
        raise InvalidArgument("the image has no target")
    return Descriptor(
        media_type=wire.media_type, digest=Digest(wire.digest), size=wire.size, annotations=dict(wire.annotations)
    )


def descriptor_to_wire(descriptor: Descriptor) -> WireDescriptor:
    return WireDescriptor(
        media_type=descriptor.media_type,
        digest=str(descriptor.digest),
        size=descriptor.size,
        annotations=dict(descriptor.annotations),
    )


def from_wire(wire: WireImage | None) -> Image:
    if wire is None:
        raise InvalidArgument("the message holds no image")
    return Image(
        name=wire.name,
        target=descriptor_from_wire(wire.target),
        labels=dict(wire.labels),
        created_at=wire.created_at,
        updated_at=wire.updated_at,
    )


def to_wire(image: Image) -> WireImage:
    return WireImage(
        name=image.name,
        target=descriptor_to_wire(image.target),
        labels=dict(image.labels),
        created_at=image.created_at,
        updated_at=image.updated_at,
    )


class RemoteImageStore:
    """`ImageStore` of the service at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._stub = ImagesStub(channel)

    async def get(self, name: str) -> Image:
        return from_wire((await self._stub.get(GetImageRequest(name=name))).image)

    async def list(self, filters: Sequence[str] = ()) -> Sequence[Image]:
        return [from_wire(wire) for wire in (await self._stub.list(ListImagesRequest(filters=[*filters]))).images]

    async def create(self, image: Image) -> Image:
        return from_wire((await self._stub.create(CreateImageRequest(image=to_wire(image)))).image)

    async def update(self, image: Image, fields: Sequence[str] = ()) -> Image:
        mask = FieldMask(paths=list(fields)) if fields else None
        return from_wire((await self._stub.update(UpdateImageRequest(image=to_wire(image), update_mask=mask))).image)

    async def delete(self, name: str, *, sync: bool = False, target: Descriptor | None = None) -> None:
        wire = descriptor_to_wire(target) if target else None
        await self._stub.delete(DeleteImageRequest(name=name, sync=sync, target=wire))
