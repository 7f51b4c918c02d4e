"""What a back end exports and can do: as it describes itself, and as the configuration says of it.

The configuration wins, since it is what the operator knows; few plugins describe themselves.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from carina.backends import Backend
from carina.errors import FailedPrecondition, Unimplemented
from carina.introspection import Plugin
from carina.introspection.client import RemoteIntrospection
from carina.rpc.client import Channel

TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "snapshot": "io.containerd.snapshotter.v1",
        "content": "io.containerd.content.v1",
        "diff": "io.containerd.differ.v1",
        "sandbox": "io.containerd.sandbox.controller.v1",
    }
)
"""containerd's plugin types of the back ends."""


async def described(stated: Backend, channel: Channel) -> Backend:
    """`stated`, as configured, with what the process at the other end says of itself.

    Raises:
        FailedPrecondition: it is one of our own, and says that it can't do its work.
        CarinaError: it does not answer.
    """
    try:
        plugins = await RemoteIntrospection(channel).plugins()
    except Unimplemented:
        return stated
    own = _own(stated, [plugin for plugin in plugins if plugin.type == TYPES[stated.type]])
    if own is None:
        return stated
    if stated.own and own.error:
        raise FailedPrecondition(own.error)
    return replace(
        stated,
        exports={**own.exports, **stated.exports},
        capabilities=stated.capabilities or tuple(own.capabilities),
    )


def _own(stated: Backend, plugins: list[Plugin]) -> Plugin | None:
    """The plugin that has the back end's name over there, or else the only one there is."""
    names = {stated.snapshotter or stated.name, "content" if stated.type == "content" else ""}
    named = [plugin for plugin in plugins if plugin.id in names]
    if not named and len(plugins) == 1 and not stated.snapshotter:
        named = plugins
    return named[0] if named else None
