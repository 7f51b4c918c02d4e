"""Serves any namespace store over gRPC."""

from carina.api.containerd.services.namespaces.v1 import (
    CreateNamespaceRequest,
    CreateNamespaceResponse,
    DeleteNamespaceRequest,
    GetNamespaceRequest,
    GetNamespaceResponse,
    ListNamespacesRequest,
    ListNamespacesResponse,
    NamespacesBase,
    UpdateNamespaceRequest,
    UpdateNamespaceResponse,
)
from carina.api.google.protobuf import Empty
from carina.namespaces import NamespaceStore
from carina.namespaces.client import from_wire, to_wire


class NamespacesService(NamespacesBase):
    def __init__(self, store: NamespaceStore) -> None:
        self._store = store

    async def get(self, message: GetNamespaceRequest) -> GetNamespaceResponse:
        return GetNamespaceResponse(namespace=to_wire(await self._store.get(message.name)))

    async def list(self, message: ListNamespacesRequest) -> ListNamespacesResponse:
        return ListNamespacesResponse(namespaces=[to_wire(found) for found in await self._store.list()])

    async def create(self, message: CreateNamespaceRequest) -> CreateNamespaceResponse:
        return CreateNamespaceResponse(namespace=to_wire(await self._store.create(from_wire(message.namespace))))

    async def update(self, message: UpdateNamespaceRequest) -> UpdateNamespaceResponse:
        fields = message.update_mask.paths if message.update_mask else ()
        updated = await self._store.update(from_wire(message.namespace), fields)
        return UpdateNamespaceResponse(namespace=to_wire(updated))

    async def delete(self, message: DeleteNamespaceRequest) -> Empty:
        await self._store.delete(message.name)
        return Empty()
