"""Tasks: running containers, and the processes executed in them."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from carina.descriptor import Descriptor
from carina.mount import Mount
from carina.typed import TypedValue


class Status(enum.Enum):
    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Stdio:
    """Paths of FIFOs (or `binary://`, `file://` URIs), empty where a stream is not wanted."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


NO_STDIO: Final = Stdio()


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A task's first process (empty `exec_id`) or one executed in it."""

    container_id: str
    exec_id: str = ""
    pid: int = 0
    status: Status = Status.UNKNOWN
    stdio: Stdio = NO_STDIO
    exit_status: int = 0
    exited_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    exec_id: str = ""
    pid: int = 0
    status: int = 0
    exited_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    pid: int
    info: TypedValue | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    id: str
    timestamp: datetime
    data: TypedValue


class TaskService(Protocol):
    """Tasks of the call's namespace. `exec_id` is empty for a task's first process."""

    async def create(
        self,
        container_id: str,
        *,
        rootfs: Sequence[Mount] = (),
        stdio: Stdio = NO_STDIO,
        checkpoint: Descriptor | None = None,
        options: TypedValue | None = None,
        runtime_path: str = "",
    ) -> int:
        """Create the task of a container record; the process waits to be started. Returns its pid.

        Raises:
            NotFound: no such container, runtime or shim.
            AlreadyExists: it has a task.
        """

    async def start(self, container_id: str, exec_id: str = "") -> int:
        """Returns the pid. Raises NotFound, or FailedPrecondition unless it was created and not yet started."""

    async def delete(self, container_id: str, exec_id: str = "") -> Exit:
        """Remove a process that is not running. Raises NotFound, FailedPrecondition."""

    async def get(self, container_id: str, exec_id: str = "") -> Process:
        """Raises NotFound."""

    async def list(self) -> Sequence[Process]: ...

    async def kill(self, container_id: str, signal: int, *, exec_id: str = "", all: bool = False) -> None:
        """Raises NotFound where there is no such process or it is gone already."""

    async def exec(self, container_id: str, exec_id: str, spec: TypedValue, stdio: Stdio = NO_STDIO) -> None:
        """Prepare a further process. Raises NotFound, AlreadyExists, FailedPrecondition."""

    async def resize_pty(self, container_id: str, width: int, height: int, *, exec_id: str = "") -> None: ...

    async def close_io(self, container_id: str, *, exec_id: str = "", stdin: bool = True) -> None: ...

    async def pause(self, container_id: str) -> None: ...

    async def resume(self, container_id: str) -> None: ...

    async def pids(self, container_id: str) -> Sequence[ProcessInfo]: ...

    async def checkpoint(self, container_id: str, options: TypedValue | None = None) -> Sequence[Descriptor]: ...

    async def update(
        self, container_id: str, resources: TypedValue, annotations: Mapping[str, str] | None = None
    ) -> None: ...

    async def metrics(self, filters: Sequence[str] = ()) -> Sequence[Metric]: ...

    async def wait(self, container_id: str, exec_id: str = "") -> Exit:
        """Returns when the process has ended, at once where it has. Raises NotFound."""
