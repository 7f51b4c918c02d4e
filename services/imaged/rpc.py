"""What imaged says of itself, in containerd's words."""

from carina import filters as filtering
from carina.api.containerd.services.introspection.v1 import IntrospectionBase, PluginsRequest, PluginsResponse
from carina.introspection import Plugin
from carina.introspection.client import to_wire
from carina.platforms import host
from imaged.differs import OWN


class IntrospectionService(IntrospectionBase):
    """Describes imaged's plugins; the gateway merges those of every service."""

    def __init__(self) -> None:
        self._plugins = plugins()

    async def plugins(self, message: PluginsRequest) -> PluginsResponse:
        matches = filtering.compile(message.filters)
        return PluginsResponse(
            plugins=[
                to_wire(plugin)
                for plugin in self._plugins
                if matches(filtering.adaptor({"type": plugin.type, "id": plugin.id}))
            ]
        )


def plugins() -> list[Plugin]:
    """What containerd would list for the work that imaged does. Differs that are plugged in are metadatad's to list."""
    platforms = (host(),)
    return [
        Plugin(type="io.containerd.differ.v1", id=OWN, platforms=platforms),
        Plugin(type="io.containerd.transfer.v1", id="local", platforms=platforms),
        Plugin(type="io.containerd.streaming.v1", id="manager"),
        Plugin(type="io.containerd.service.v1", id="diff-service"),
        Plugin(type="io.containerd.grpc.v1", id="diff"),
        Plugin(type="io.containerd.grpc.v1", id="transfer"),
        Plugin(type="io.containerd.grpc.v1", id="streaming"),
    ]
