"""Serves any back-end registry over gRPC."""

from carina.api.carina.plugins.v1 import (
    AddRequest,
    AddResponse,
    ListRequest,
    ListResponse,
    PluginsBase,
    ReloadRequest,
    ReloadResponse,
    RemoveRequest,
    RemoveResponse,
)
from carina.backends import BackendRegistry
from carina.backends.client import from_wire, to_wire
from carina.errors import InvalidArgument


class PluginsService(PluginsBase):
    def __init__(self, registry: BackendRegistry) -> None:
        self._registry = registry

    async def add(self, message: AddRequest) -> AddResponse:
        if message.backend is None:
            raise InvalidArgument("the request names no back end")
        return AddResponse(backend=to_wire(await self._registry.add(from_wire(message.backend))))

    async def remove(self, message: RemoveRequest) -> RemoveResponse:
        await self._registry.remove(message.type, message.name, force=message.force)
        return RemoveResponse()

    async def list(self, message: ListRequest) -> ListResponse:
        return ListResponse(backends=[to_wire(backend) for backend in await self._registry.list()])

    async def reload(self, message: ReloadRequest) -> ReloadResponse:
        found = await self._registry.reload()
        return ReloadResponse(path=found.path, changes=list(found.changes), later=list(found.later))
