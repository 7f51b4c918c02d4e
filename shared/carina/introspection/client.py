"""Introspection over a socket."""

from collections.abc import Sequence

from carina.api.containerd.services.introspection.v1 import IntrospectionStub, PluginInfoRequest, PluginsRequest
from carina.api.containerd.services.introspection.v1 import Plugin as WirePlugin
from carina.api.containerd.types import Platform as WirePlatform
from carina.api.containerd.types import RuntimeRequest
from carina.api.google.protobuf import Any as WireAny
from carina.api.google.protobuf import Empty
from carina.api.google.rpc import Status
from carina.errors import NotFound
from carina.introspection import Deprecation, Plugin, Server
from carina.platforms import Platform
from carina.rpc.any import value_from_wire, value_to_wire
from carina.rpc.client import Channel
from carina.rpc.codec import encode
from carina.typed import TypedValue

UNKNOWN = 2
RUNTIME = "io.containerd.runtime.v2"


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

    async def runtime(self, path: str, options: TypedValue | None = None) -> TypedValue:
        """What a runtime says of itself: `containerd.types.RuntimeInfo`. Raises NotFound."""
        request = RuntimeRequest(runtime_path=path, options=value_to_wire(options))
        wanted = WireAny(type_url="containerd.types.RuntimeRequest", value=encode(request))
        answer = await self._stub.plugin_info(PluginInfoRequest(type=RUNTIME, id="task", options=wanted))
        found = value_from_wire(answer.extra)
        if found is None:
            raise NotFound(f"runtime {path} says nothing of itself")
        return found

    async def server(self) -> Server:
        """What the server says of itself."""
        answer = await self._stub.server(Empty())
        warnings = [
            Deprecation(id=one.id, message=one.message, last_occurrence=one.last_occurrence)
            for one in answer.deprecations
        ]
        return Server(uuid=answer.uuid, pid=answer.pid, pidns=answer.pidns, deprecations=warnings)
