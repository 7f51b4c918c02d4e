"""Sandboxes: the record of a group of containers that share a shim (`carina.tasks` runs them)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from carina.typed import Runtime, TypedValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    id: str
    runtime: Runtime | None = None
    spec: TypedValue | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: datetime | None = None
    updated_at: datetime | None = None
    extensions: Mapping[str, TypedValue] = field(default_factory=dict)
    sandboxer: str = ""
    """Name of the controller that runs it."""


class SandboxStore(Protocol):
    """Sandbox records of the call's namespace."""

    async def get(self, id: str) -> Sandbox:
        """Raises NotFound."""

    async def list(self, filters: Sequence[str] = ()) -> Sequence[Sandbox]: ...

    async def create(self, sandbox: Sandbox) -> Sandbox:
        """Raises AlreadyExists or InvalidArgument."""

    async def update(self, sandbox: Sandbox, fields: Sequence[str] = ()) -> Sandbox:
        """Raises NotFound, or InvalidArgument for a field that is immutable."""

    async def delete(self, id: str) -> None:
        """Raises NotFound."""
