"""Containers: the record of what to run. A running container is a task (`carina.tasks`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from carina.typed import Runtime, TypedValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    runtime: Runtime | None = None
    spec: TypedValue | None = None
    """The OCI runtime specification, JSON with the type URL of runtime-spec/1/Spec."""
    snapshotter: str = ""
    snapshot_key: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    extensions: Mapping[str, TypedValue] = field(default_factory=dict)
    sandbox: str = ""


class ContainerStore(Protocol):
    """Container records of the call's namespace."""

    async def get(self, id: str) -> Container:
        """Raises NotFound."""

    async def list(self, filters: Sequence[str] = ()) -> Sequence[Container]: ...

    async def create(self, container: Container) -> Container:
        """Raises AlreadyExists or InvalidArgument."""

    async def update(self, container: Container, fields: Sequence[str] = ()) -> Container:
        """Raises NotFound, or InvalidArgument for a field that is immutable."""

    async def delete(self, id: str) -> None:
        """Raises NotFound."""
