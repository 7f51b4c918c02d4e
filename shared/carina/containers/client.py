"""The container store over a socket."""

from collections.abc import Sequence

from carina.api.containerd.services.containers.v1 import Container as WireContainer
from carina.api.containerd.services.containers.v1 import (
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
    GetContainerRequest,
    ListContainersRequest,
    UpdateContainerRequest,
)
from carina.api.google.protobuf import FieldMask
from carina.containers import Container
from carina.errors import InvalidArgument, Unimplemented
from carina.rpc.any import value_from_wire, value_to_wire, values_from_wire, values_to_wire
from carina.rpc.client import Channel
from carina.typed import Runtime


def from_wire(wire: WireContainer | None) -> Container:
    if wire is None:
        raise InvalidArgument("the message holds no container")
    runtime = wire.runtime
    return Container(
        id=wire.id,
        labels=dict(wire.labels),
        image=wire.image,
        runtime=Runtime(name=runtime.name, options=value_from_wire(runtime.options)) if runtime else None,
        spec=value_from_wire(wire.spec),
        snapshotter=wire.snapshotter,
        snapshot_key=wire.snapshot_key,
        created_at=wire.created_at,
        updated_at=wire.updated_at,
        extensions=values_from_wire(wire.extensions),
        sandbox=wire.sandbox,
    )


def to_wire(container: Container) -> WireContainer:
    runtime = container.runtime
    return WireContainer(
        id=container.id,
        labels=dict(container.labels),
        image=container.image,
        runtime=ContainerRuntime(name=runtime.name, options=value_to_wire(runtime.options)) if runtime else None,
        spec=value_to_wire(container.spec),
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        created_at=container.created_at,
        updated_at=container.updated_at,
        extensions=values_to_wire(container.extensions),
        sandbox=container.sandbox,
    )


class RemoteContainerStore:
    """`ContainerStore` of the service at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._stub = ContainersStub(channel)

    async def get(self, id: str) -> Container:
        return from_wire((await self._stub.get(GetContainerRequest(id=id))).container)

    async def list(self, filters: Sequence[str] = ()) -> Sequence[Container]:
        request = ListContainersRequest(filters=[*filters])
        try:  # streamed, because all specifications together may be more than one message can hold
            return [from_wire(answer.container) async for answer in self._stub.list_stream(request)]
        except Unimplemented:
            return [from_wire(wire) for wire in (await self._stub.list(request)).containers]

    async def create(self, container: Container) -> Container:
        return from_wire((await self._stub.create(CreateContainerRequest(container=to_wire(container)))).container)

    async def update(self, container: Container, fields: Sequence[str] = ()) -> Container:
        mask = FieldMask(paths=list(fields)) if fields else None
        request = UpdateContainerRequest(container=to_wire(container), update_mask=mask)
        return from_wire((await self._stub.update(request)).container)

    async def delete(self, id: str) -> None:
        await self._stub.delete(DeleteContainerRequest(id=id))
