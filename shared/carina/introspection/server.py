"""Serves any introspection over gRPC."""

from carina.api.containerd.services.introspection.v1 import IntrospectionBase, PluginsRequest, PluginsResponse
from carina.introspection import Introspection
from carina.introspection.client import to_wire


class IntrospectionService(IntrospectionBase):
    def __init__(self, introspection: Introspection) -> None:
        self._introspection = introspection

    async def plugins(self, message: PluginsRequest) -> PluginsResponse:
        return PluginsResponse(plugins=[to_wire(found) for found in await self._introspection.plugins(message.filters)])
