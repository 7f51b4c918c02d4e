"""Introspection over a socket."""

from collections.abc import Sequence

from carina.api.containerd.services.introspection.v1 import IntrospectionStub, PluginsRequest
from carina.api.containerd.services.introspection.v1 import Plugin as WirePlugin
from carina.api.containerd.types import Platform as WirePlatform
from carina.api.google.rpc import Status
from carina.introspection import Plugin
from carina.platforms import Platform
from carina.rpc.client import Channel

UNKNOWN = 2


def from_wire(wire: WirePlugin) -> Plugin:
    return Plugin(
        type=wire.type,
        id=wire.id,
        requires=tuple(wire.requires),
        platforms=tuple(Platform(os=p.os, architecture=p.architecture, variant=p.variant) for p in wire.platforms),
        exports=dict(wire.exports),
        capabilities=tuple(wire.capabilities),
        error=wire.init_err.message if wire.init_err else "",
    )


def to_wire(plugin: Plugin) -> WirePlugin:
    return WirePlugin(
        type=plugin.type,
        id=plugin.id,
        requires=list(plugin.requires),
        platforms=[WirePlatform(os=p.os, architecture=p.architecture, variant=p.variant) for p in plugin.platforms],
        exports=dict(plugin.exports),
        capabilities=list(plugin.capabilities),
        init_err=Status(code=UNKNOWN, message=plugin.error) if plugin.error else None,
    )


class RemoteIntrospection:
    """`Introspection` of the service at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._stub = IntrospectionStub(channel)

    async def plugins(self, filters: Sequence[str] = ()) -> Sequence[Plugin]:
        answer = await self._stub.plugins(PluginsRequest(filters=list(filters)))
        return [from_wire(wire) for wire in answer.plugins]
