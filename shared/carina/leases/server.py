"""Serves any lease manager over gRPC."""

from carina.api.containerd.services.leases.v1 import (
    AddResourceRequest,
    CreateRequest,
    CreateResponse,
    DeleteRequest,
    DeleteResourceRequest,
    LeasesBase,
    ListRequest,
    ListResourcesRequest,
    ListResourcesResponse,
    ListResponse,
)
from carina.api.google.protobuf import Empty
from carina.leases import Lease, LeaseManager
from carina.leases.client import resource_from_wire, resource_to_wire, to_wire
from carina.rpc.codec import Encoded
from carina.rpc.lists import encoded


class LeasesService(LeasesBase):
    def __init__(self, manager: LeaseManager) -> None:
        self._manager = manager

    async def create(self, message: CreateRequest) -> CreateResponse:
        lease = await self._manager.create(Lease(id=message.id, labels=dict(message.labels)))
        return CreateResponse(lease=to_wire(lease))

    async def delete(self, message: DeleteRequest) -> Empty:
        await self._manager.delete(message.id, sync=message.sync)
        return Empty()

    async def list(self, message: ListRequest) -> Encoded:  # type: ignore[override]  # what is sent
        found = await self._manager.list(message.filters)
        return await encoded(found, lambda some: ListResponse(leases=[to_wire(lease) for lease in some]))

    async def add_resource(self, message: AddResourceRequest) -> Empty:
        await self._manager.add_resource(message.id, resource_from_wire(message.resource))
        return Empty()

    async def delete_resource(self, message: DeleteResourceRequest) -> Empty:
        await self._manager.delete_resource(message.id, resource_from_wire(message.resource))
        return Empty()

    async def list_resources(self, message: ListResourcesRequest) -> Encoded:  # type: ignore[override]  # what is sent
        found = await self._manager.resources(message.id)
        return await encoded(
            found, lambda some: ListResourcesResponse(resources=[resource_to_wire(resource) for resource in some])
        )
