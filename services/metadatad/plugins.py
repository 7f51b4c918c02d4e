"""What metadatad says of itself and of its back ends, with the types and ids that containerd gives them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from carina.backends import Backend, BackendRegistry
from carina.filters import matcher
from carina.introspection import Plugin
from carina.introspection.fields import fields
from carina.platforms import Platform, host
from metadatad.description import TYPES

_OWN: Final = (
    ("io.containerd.event.v1", ("exchange",)),
    ("io.containerd.gc.v1", ("scheduler",)),
    ("io.containerd.lease.v1", ("manager",)),
    ("io.containerd.sandbox.store.v1", ("local",)),
    (
        "io.containerd.service.v1",
        tuple(f"{noun}-service" for noun in ("containers", "content", "images", "namespaces", "snapshots")),
    ),
    (
        "io.containerd.grpc.v1",
        ("containers", "content", "events", "images", "leases", "namespaces", "sandboxes", "snapshots"),
    ),
)


class Plugins:
    """`carina.introspection.Introspection` of this service."""

    def __init__(self, *, database: Path, registry: BackendRegistry | None = None, shared: bool = True) -> None:
        self._database = database
        self._registry = registry
        self._policy = "shared" if shared else "isolated"

    async def plugins(self, filters: Sequence[str] = ()) -> list[Plugin]:
        matches = matcher(filters, fields)
        backends = await self._registry.list() if self._registry is not None else ()
        metadata = Plugin(
            type="io.containerd.metadata.v1",
            id="bolt",  # clients look it up by the id that containerd's has
            requires=("io.containerd.content.v1", "io.containerd.snapshotter.v1", "io.containerd.event.v1"),
            exports={"path": str(self._database), "policy": self._policy},
        )
        own = [Plugin(type=type, id=id) for type, ids in _OWN for id in ids]
        found = [metadata, *own, *map(_of_backend, backends)]
        return [plugin for plugin in found if matches(plugin)]


def _of_backend(backend: Backend) -> Plugin:
    return Plugin(
        type=TYPES[backend.type],
        id=backend.name,
        platforms=_platforms(backend),
        exports={**backend.exports, "address": backend.address},
        capabilities=tuple(backend.capabilities),
        error=backend.error,
    )


def _platforms(backend: Backend) -> tuple[Platform, ...]:
    if backend.platform:
        return (Platform.parse(backend.platform),)
    return (host(),) if backend.type in {"snapshot", "diff"} else ()
