"""Back ends: the content store and the snapshotters that the metadata service composes, external ones too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    type: str
    """`snapshot`, `content`, `diff` or `sandbox`."""
    name: str
    address: str
    """`unix:///path` of its socket."""
    namespace: str = ""
    """Sent with every call to a back end that has namespaces itself."""
    snapshotter: str = ""
    """Name of the snapshotter over there, where it differs."""
    lease: str = ""
    """Standing lease over there that keeps our objects alive."""
    platform: str = ""
    """What it is for, as `os/architecture`, where the configuration says so."""
    own: bool = False
    """A service of the constellation rather than a proxy plugin."""
    configured: bool = False
    """Named by the configuration file rather than added live."""
    error: str = ""
    """What is wrong, in a sentence; empty while it answers."""
    exports: Mapping[str, str] = field(default_factory=dict)
    capabilities: Sequence[str] = ()


class BackendRegistry(Protocol):
    async def add(self, backend: Backend) -> Backend:
        """Plug a back end in while everything runs; it is there again after a restart.

        Raises:
            AlreadyExists: a back end of this type and name is there.
            Unavailable: nothing answers at its address.
            InvalidArgument: type, name or address can't be.
        """

    async def remove(self, type: str, name: str) -> None:
        """Take a back end out.

        Raises:
            NotFound: no such back end.
            FailedPrecondition: records refer to it, or the configuration names it.
        """

    async def list(self) -> Sequence[Backend]: ...
