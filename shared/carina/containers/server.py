"""Serves any container store over gRPC."""

from collections.abc import AsyncIterator

from carina.api.containerd.services.containers.v1 import (
    ContainersBase,
    CreateContainerRequest,
    CreateContainerResponse,
    DeleteContainerRequest,
    GetContainerRequest,
    GetContainerResponse,
    ListContainerMessage,
    ListContainersRequest,
    ListContainersResponse,
    UpdateContainerRequest,
    UpdateContainerResponse,
)
from carina.api.google.protobuf import Empty
from carina.containers import ContainerStore
from carina.containers.client import from_wire, to_wire
from carina.rpc.codec import Encoded
from carina.rpc.lists import encoded


class ContainersService(ContainersBase):
    def __init__(self, store: ContainerStore) -> None:
        self._store = store

    async def get(self, message: GetContainerRequest) -> GetContainerResponse:
        return GetContainerResponse(container=to_wire(await self._store.get(message.id)))

    async def list(self, message: ListContainersRequest) -> Encoded:  # type: ignore[override]  # what is sent
        found = await self._store.list(message.filters)
        return await encoded(
            found, lambda some: ListContainersResponse(containers=[to_wire(container) for container in some])
        )

    async def list_stream(self, message: ListContainersRequest) -> AsyncIterator[ListContainerMessage]:
        for container in await self._store.list(message.filters):
            yield ListContainerMessage(container=to_wire(container))

    async def create(self, message: CreateContainerRequest) -> CreateContainerResponse:
        return CreateContainerResponse(container=to_wire(await self._store.create(from_wire(message.container))))

    async def update(self, message: UpdateContainerRequest) -> UpdateContainerResponse:
        fields = message.update_mask.paths if message.update_mask else ()
        updated = await self._store.update(from_wire(message.container), fields)
        return UpdateContainerResponse(container=to_wire(updated))

    async def delete(self, message: DeleteContainerRequest) -> Empty:
        await self._store.delete(message.id)
        return Empty()
