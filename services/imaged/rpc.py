"""What imaged says of itself, in containerd's words."""

from carina import filters as filtering
from carina.api.containerd.services.introspection.v1 import IntrospectionBase, PluginsRequest, PluginsResponse
from carina.introspection import Plugin
from carina.introspection.client import to_wire
from carina.platforms import host
from imaged.config import Config


class IntrospectionService(IntrospectionBase):
    """Describes imaged's plugins; the gateway merges those of every service."""

    def __init__(self, config: Config) -> None:
        self._plugins = plugins(config)

    async def plugins(self, message: PluginsRequest) -> PluginsResponse:
        matches = filtering.compile(message.filters)
        return PluginsResponse(
            plugins=[
                to_wire(plugin)
                for plugin in self._plugins
                if matches(filtering.adaptor({"type": plugin.type, "id": plugin.id}))
            ]
        )


def plugins(config: Config) -> list[Plugin]:
    """What containerd would list for the work that imaged does."""
    platforms = (host(),)
    external = [Plugin(type="io.containerd.differ.v1", id=name, platforms=platforms) for name in config.differs]
    return [
        Plugin(type="io.containerd.differ.v1", id="walking", platforms=platforms),
        *external,
        Plugin(type="io.containerd.transfer.v1", id="local", platforms=platforms),
        Plugin(type="io.containerd.streaming.v1", id="manager"),
        Plugin(type="io.containerd.service.v1", id="diff-service"),
        Plugin(type="io.containerd.grpc.v1", id="diff"),
        Plugin(type="io.containerd.grpc.v1", id="transfer"),
        Plugin(type="io.containerd.grpc.v1", id="streaming"),
    ]
