"""Leases: they keep what they hold from being collected until deleted or expired."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    id: str
    created_at: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    type: str
    """`content`, `ingests`, `images`, or `snapshots/SNAPSHOTTER`."""
    id: str
    """Digest, ref, name, or key."""


class LeaseManager(Protocol):
    """Leases of the call's namespace."""

    async def create(self, lease: Lease) -> Lease:
        """Raises AlreadyExists or InvalidArgument."""

    async def delete(self, id: str, *, sync: bool = False) -> None:
        """Raises NotFound. With `sync`, returns when the disk is clean of what it alone held."""

    async def list(self, filters: Sequence[str] = ()) -> Sequence[Lease]: ...

    async def add_resource(self, id: str, resource: Resource) -> None:
        """Make the lease hold a resource, which need not exist yet.

        Raises:
            NotFound: no such lease.
            InvalidArgument: there can't be such a resource.
            Unimplemented: a lease can't hold this type.
        """

    async def delete_resource(self, id: str, resource: Resource) -> None:
        """Raises NotFound for the lease."""

    async def resources(self, id: str) -> Sequence[Resource]:
        """Raises NotFound."""
