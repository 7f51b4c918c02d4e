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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """What reading the configuration again came to, a sentence for each thing that is different."""

    path: str
    """The file; empty where there is none."""
    changes: Sequence[str] = ()
    """In effect now."""
    later: Sequence[str] = ()
    """In effect when the service that they are about is started again."""


class BackendRegistry(Protocol):
    async def add(self, backend: Backend) -> Backend:
        """Plug a back end in while everything runs; it is there again after a restart.

        Raises:
            AlreadyExists: a back end of this name is there.
            Unavailable: nothing answers at its address.
            FailedPrecondition: what answers there is not of this type.
            InvalidArgument: type, name, address or settings can't be.
        """

    async def remove(self, type: str, name: str, *, force: bool = False) -> None:
        """Take a back end out; an empty type stands for any. With `force`, records of its snapshots are forgotten.

        Raises:
            NotFound: no such back end.
            FailedPrecondition: records refer to it, or the configuration names it.
        """

    async def list(self) -> Sequence[Backend]:
        """Every back end as it was last known to be. Waits for none that hangs."""

    async def reload(self) -> Reloaded:
        """Read the configuration again, and take its proxy plugins over.

        Raises:
            NotFound: the file has gone.
            InvalidArgument: the file says something that can't be. Nothing has changed then.
            FailedPrecondition: records refer to a back end that the file no longer names. Nothing has changed then.
        """
