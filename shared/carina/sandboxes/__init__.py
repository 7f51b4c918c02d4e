"""Sandboxes: the record of a group of containers that share a shim (`carina.tasks` runs them)."""

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
    """A sandbox that has been started."""

    pid: int = 0
    """As the host sees it; 0 where it is no process."""
    created_at: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    """Of the Task API for containers in it, such as `ttrpc+unix:///run/...`; empty where there is none."""
    version: int = 0
    """Of that API."""
    spec: TypedValue | None = None
    """Changes to the specification of its containers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How a sandbox is."""

    pid: int = 0
    state: str = ""
    """A word of the controller's choice; CRI's are SANDBOX_READY and SANDBOX_NOTREADY."""
    info: Mapping[str, str] = field(default_factory=dict)
    created_at: datetime | None = None
    exited_at: datetime | None = None
    extra: TypedValue | None = None
    address: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a sandbox ended."""

    status: int = 0
    """The exit code, or 128 and the signal; 255 where nobody knows."""
    exited_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was measured of a sandbox at a moment."""

    timestamp: datetime
    data: TypedValue


class SandboxController(Protocol):
    """Runs the sandboxes of the call's namespace. Each method raises NotFound where there is no such sandbox."""

    async def create(
        self,
        id: str,
        *,
        sandbox: Sandbox | None = None,
        rootfs: Sequence[Mount] = (),
        options: TypedValue | None = None,
        netns_path: str = "",
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare it; without `sandbox` its record is read from the store. If it fails, nothing is left.

        Raises:
            AlreadyExists: it is there.
            Unimplemented: its runtime has no sandboxes.
        """

    async def start(self, id: str) -> Instance:
        """Once it returns, tasks can be created in it."""

    async def platform(self, id: str) -> Platform:
        """What its containers see, which may differ from the host's."""

    async def stop(self, id: str, *, seconds: int = 0) -> None:
        """End it and what is in it, by force after `seconds` (0: the controller's default). Idempotent."""

    async def wait(self, id: str) -> End:
        """Its end, whenever that is."""

    async def status(self, id: str, *, verbose: bool = False) -> State: ...

    async def metrics(self, id: str) -> Reading: ...

    async def shutdown(self, id: str) -> None:
        """Stop it, and remove what it has on disk. Idempotent."""

    async def update(self, id: str, sandbox: Sandbox, fields: Sequence[str] = ()) -> None:
        """Take over what has changed in its record: paths of fields; all where empty.

        Raises:
            Unimplemented: the controller can't follow changes.
        """
