"""What contentd says of itself, in containerd's words."""

from dataclasses import replace

from carina import filters as filtering
from carina.api.containerd.services.introspection.v1 import IntrospectionBase, PluginsRequest, PluginsResponse
from carina.introspection import Plugin
from carina.introspection.client import to_wire
from carina.rpc.readiness import Readiness


class IntrospectionService(IntrospectionBase):
    """Describes one plugin, with what stands in the way of its work if anything does."""

    def __init__(self, plugin: Plugin, readiness: Readiness | None = None) -> None:
        self._plugin = plugin
        self._readiness = readiness

    async def plugins(self, message: PluginsRequest) -> PluginsResponse:
        fields = filtering.adaptor({"type": self._plugin.type, "id": self._plugin.id})
        matches = filtering.compile(message.filters)(fields)
        error = self._plugin.error or (self._readiness.error if self._readiness else "")
        plugin = replace(self._plugin, error=error)
        return PluginsResponse(plugins=[to_wire(plugin)] if matches else [])
