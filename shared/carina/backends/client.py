"""The back-end registry over a socket."""

from collections.abc import Sequence

from carina.api.carina.plugins.v1 import AddRequest, ListRequest, PluginsStub, ReloadRequest, RemoveRequest
from carina.api.carina.plugins.v1 import Backend as WireBackend
from carina.backends import Backend, Reloaded
from carina.rpc.client import Channel


def from_wire(wire: WireBackend) -> Backend:
    return Backend(
        type=wire.type,
        name=wire.name,
        address=wire.address,
        namespace=wire.namespace,
        snapshotter=wire.snapshotter,
        lease=wire.lease,
        platform=wire.platform,
        own=wire.own,
        configured=wire.configured,
        error=wire.error,
        exports=dict(wire.exports),
        capabilities=tuple(wire.capabilities),
    )


def to_wire(backend: Backend) -> WireBackend:
    return WireBackend(
        type=backend.type,
        name=backend.name,
        address=backend.address,
        namespace=backend.namespace,
        snapshotter=backend.snapshotter,
        lease=backend.lease,
        platform=backend.platform,
        own=backend.own,
        configured=backend.configured,
        error=backend.error,
        exports=dict(backend.exports),
        capabilities=list(backend.capabilities),
    )


class RemoteBackendRegistry:
    """`BackendRegistry` of the service at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._stub = PluginsStub(channel)

    async def add(self, backend: Backend) -> Backend:
        answer = await self._stub.add(AddRequest(backend=to_wire(backend)))
        return from_wire(answer.backend) if answer.backend else backend

    async def remove(self, type: str, name: str, *, force: bool = False) -> None:
        await self._stub.remove(RemoveRequest(type=type, name=name, force=force))

    async def list(self) -> Sequence[Backend]:
        return [from_wire(wire) for wire in (await self._stub.list(ListRequest())).backends]

    async def reload(self) -> Reloaded:
        answer = await self._stub.reload(ReloadRequest())
        return Reloaded(path=answer.path, changes=tuple(answer.changes), later=tuple(answer.later))
