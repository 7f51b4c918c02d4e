"""Sandboxes: the record of a group of containers that share a shim, and the controllers that run such groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from carina.mount import Mount
from carina.platforms import Platform
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A sandbox that a controller has started."""

    pid: int = 0
    """As the host sees it; 0 where the sandbox is no process."""
    created_at: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    """Of the task API inside of the sandbox; empty where tasks find it otherwise."""
    version: int = 0
    """Of that task API: 2 or 3."""
    spec: TypedValue | None = None
    """JSON: changes that the sandbox makes to the specification of its containers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a sandbox is."""

    state: str
    """A word of the controller's choice."""
    pid: int = 0
    info: Mapping[str, str] = field(default_factory=dict)
    """For people, not for programs."""
    created_at: datetime | None = None
    exited_at: datetime | None = None
    extra: TypedValue | None = None
    address: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a sandbox has ended."""

    status: int
    """The exit code, or 128 and the signal."""
    exited_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    timestamp: datetime
    data: TypedValue | None = None


class SandboxController(Protocol):
    """What runs sandboxes of the call's namespace. Every method but `create` raises NotFound for an unknown id."""

    async def create(
        self,
        id: str,
        *,
        rootfs: Sequence[Mount] = (),
        options: TypedValue | None = None,
        netns_path: str = "",
        annotations: Mapping[str, str] | None = None,
        sandbox: Sandbox | None = None,
    ) -> None:
        """Make what a sandbox needs; `sandbox` is its record, where the caller sends it. Raises AlreadyExists."""

    async def start(self, id: str) -> Instance: ...

    async def platform(self, id: str) -> Platform:
        """What its containers are for."""

    async def stop(self, id: str, *, timeout: int = 0) -> None:
        """End it, by force after `timeout` seconds; 0: the controller's default."""

    async def wait(self, id: str) -> Ending:
        """Returns when it has ended."""

    async def status(self, id: str, *, verbose: bool = False) -> Status:
        """`verbose` fills `info` too."""

    async def shutdown(self, id: str) -> None:
        """Remove what `create` made, of a sandbox that has ended."""

    async def metrics(self, id: str) -> Measured: ...

    async def update(self, id: str, sandbox: Sandbox, fields: Sequence[str] = ()) -> None:
        """Take over what has changed in its record: paths of fields; all where empty."""
