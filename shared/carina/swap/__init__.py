"""Services moved to other implementations of them, live."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from carina.config import socket_path
from carina.context import validate_identifier
from carina.digest import Digest
from carina.errors import InvalidArgument


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a service is, and how it is called there."""

    address: str
    """`unix:///path` of its socket."""
    namespace: str = ""
    """Sent with every call to a service that has namespaces itself."""
    snapshotter: str = ""
    """Name of the snapshotter over there, where it differs."""
    lease: str = ""
    """Standing lease over there that keeps our objects alive."""

    def validate(self) -> None:
        """Raises InvalidArgument: a value that can't be, or one that needs another."""
        socket_path(self.address)
        for noun, value in (("namespace", self.namespace), ("snapshotter", self.snapshotter)):
            if value:
                validate_identifier(value, noun)
        if self.lease and not self.namespace:
            raise InvalidArgument("lease needs namespace: a lease is in one")

    def __str__(self) -> str:
        """The address and what else is set, for sentences."""
        settings = [("namespace", self.namespace), ("snapshotter", self.snapshotter), ("lease", self.lease)]
        said = ", ".join(f"{key} {value}" for key, value in settings if value)
        return f"{self.address} ({said})" if said else self.address


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A committed snapshot as its snapshotter knows it."""

    name: str
    parent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacking:
    """Some of what a store lacks."""

    source: Place
    """Where the objects are now."""
    blobs: Sequence[Blob] = ()
    snapshots: Sequence[Snapshot] = ()
    """Parents before their children."""


class Swapper(Protocol):
    async def swap(self, services: Sequence[str], to: Place | None) -> Sequence[str]:
        """Move services (`content`, `snapshots.NAME`, `diff`, `images`, `tasks`), all or none, and say what changed.

        Without `to` they go back to where the configuration has them.

        Raises:
            NotFound: there is no such service.
            InvalidArgument: the place can't be.
            Unavailable: nobody answers there.
            FailedPrecondition: what answers is something else, lacks something that is recorded, or something is under
                way that would be cut. Nothing has changed then.
        """

    def missing(self, service: str, to: Place) -> AsyncIterator[Lacking]:
        """What is recorded, and not at another place. There is at least one item, which may be empty."""
