"""Leases over a socket."""

from collections.abc import Sequence

from carina.api.containerd.services.leases.v1 import (
    AddResourceRequest,
    CreateRequest,
    DeleteRequest,
    DeleteResourceRequest,
    LeasesStub,
    ListRequest,
    ListResourcesRequest,
)
from carina.api.containerd.services.leases.v1 import Lease as WireLease
from carina.api.containerd.services.leases.v1 import Resource as WireResource
from carina.errors import InvalidArgument
from carina.leases import Lease, Resource
from carina.rpc.client import Channel


def from_wire(wire: WireLease | None) -> Lease:
    if wire is None:
        raise InvalidArgument("the message holds no lease")
    return Lease(id=wire.id, created_at=wire.created_at, labels=dict(wire.labels))


def to_wire(lease: Lease) -> WireLease:
    return WireLease(id=lease.id, created_at=lease.created_at, labels=dict(lease.labels))


def resource_from_wire(wire: WireResource | None) -> Resource:
    if wire is None:
        raise InvalidArgument("the message names no resource")
    return Resource(type=wire.type, id=wire.id)


def resource_to_wire(resource: Resource) -> WireResource:
    return WireResource(type=resource.type, id=resource.id)


class RemoteLeaseManager:
    """`LeaseManager` of the service at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._stub = LeasesStub(channel)

    async def create(self, lease: Lease) -> Lease:
        return from_wire((await self._stub.create(CreateRequest(id=lease.id, labels=dict(lease.labels)))).lease)

    async def delete(self, id: str, *, sync: bool = False) -> None:
        await self._stub.delete(DeleteRequest(id=id, sync=sync))

    async def list(self, filters: Sequence[str] = ()) -> Sequence[Lease]:
        return [from_wire(wire) for wire in (await self._stub.list(ListRequest(filters=[*filters]))).leases]

    async def add_resource(self, id: str, resource: Resource) -> None:
        await self._stub.add_resource(AddResourceRequest(id=id, resource=resource_to_wire(resource)))

    async def delete_resource(self, id: str, resource: Resource) -> None:
        await self._stub.delete_resource(DeleteResourceRequest(id=id, resource=resource_to_wire(resource)))

    async def resources(self, id: str) -> Sequence[Resource]:
        answer = await self._stub.list_resources(ListResourcesRequest(id=id))
        return [resource_from_wire(wire) for wire in answer.resources]
