"""What contentd says of itself, in containerd's words."""

from carina import filters as filtering
from carina.api.containerd.services.introspection.v1 import IntrospectionBase, PluginsRequest, PluginsResponse
from carina.introspection import Plugin
from carina.introspection.client import to_wire


class IntrospectionService(IntrospectionBase):
    """Describes one plugin."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    async def plugins(self, message: PluginsRequest) -> PluginsResponse:
        fields = filtering.adaptor({"type": self._plugin.type, "id": self._plugin.id})
        matches = filtering.compile(message.filters)(fields)
        return PluginsResponse(plugins=[to_wire(self._plugin)] if matches else [])
