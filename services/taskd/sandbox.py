"""A sandbox that a shim holds: what taskd keeps of it in memory and in its bundle, and its shim's Sandbox service.

CREATING ──► LIVE ──► GONE          created here, then shut down
    └──────────────► GONE           creation failed: nothing remains
CONNECTING ──► LIVE                 found on disk at the start, or its connection was lost
    └──────────────► DEAD ──► GONE  its shim is dead; it is remembered until it is shut down
"""

import asyncio
import enum
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, TypeVar

import betterproto2

from carina import context
from carina.api.containerd.runtime.sandbox import v1 as wire
from carina.errors import CarinaError, DataLoss, FailedPrecondition, NotFound, Unavailable, Unimplemented
from carina.linux.errnos import translated
from carina.sandboxes import End
from taskd.bundle import Bundle
from taskd.shim import Shim

M = TypeVar("M", bound=betterproto2.Message)
_FILE: Final = "sandbox.json"


class Phase(enum.Enum):
    CREATING = enum.auto()
    CONNECTING = enum.auto()
    LIVE = enum.auto()
    DEAD = enum.auto()
    GONE = enum.auto()


def _future() -> "asyncio.Future[End]":
    future: asyncio.Future[End] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the bundle remembers beside how to reach the shim."""

    number: int
    """Tells a sandbox from earlier ones of its name."""
    created: bool = False
    """Whether its shim has created it: without that its creation was cut off."""
    end: End | None = None


def remember(bundle: Bundle, memory: Memory) -> None:
    """Raises CarinaError where it can't be written. Blocks: call it in a thread."""
    end = memory.end
    at = end.exited_at.isoformat() if end is not None and end.exited_at is not None else None
    found = {
        "number": memory.number,
        "created": memory.created,
        "status": None if end is None else end.status,
        "exited_at": at,
    }
    try:
        bundle.write(_FILE, json.dumps(found).encode())
    except OSError as error:
        raise translated(error, f"writing {_FILE} of bundle {bundle.path}") from error


def recall(bundle: Bundle) -> Memory:
    """Raises DataLoss. Blocks: call it in a thread."""
    try:
        found = json.loads(bundle.read(_FILE) or "")
        at = None if found["exited_at"] is None else datetime.fromisoformat(found["exited_at"])
        end = None if found["status"] is None else End(status=int(found["status"]), exited_at=at)
        return Memory(number=int(found["number"]), created=bool(found["created"]), end=end)
    except (ValueError, KeyError, TypeError) as error:
        raise DataLoss(f"bundle {bundle.path}: {_FILE} is damaged or missing") from error


@dataclass(slots=True, eq=False)
class Sandboxed:
    bundle: Bundle
    phase: Phase
    number: int = 0
    created: bool = False
    binary: Path | None = None
    shim: Shim | None = None
    ending: bool = False
    """Whether it is being shut down: the loss of its shim is what was asked for."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    ended: "asyncio.Future[End]" = field(default_factory=_future)
    stop_log: Callable[[], None] = lambda: None

    @property
    def key(self) -> tuple[str, str]:
        return self.bundle.namespace, self.bundle.id

    @property
    def id(self) -> str:
        return self.bundle.id

    @property
    def last(self) -> End | None:
        """How it ended, if it did."""
        done = self.ended.done() and not self.ended.cancelled() and self.ended.exception() is None
        return self.ended.result() if done else None

    def enter(self, phase: Phase) -> None:
        self.phase = phase
        if phase in (Phase.CREATING, Phase.CONNECTING):
            self.settled.clear()
        else:
            self.settled.set()

    def end(self, end: End) -> None:
        """Whoever waits gets `end`; an earlier end stays, an earlier failure to wait does not."""
        if self.ended.done() and self.last is None:
            self.ended = _future()
        if not self.ended.done():
            self.ended.set_result(end)

    def fail(self, error: CarinaError) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)

    async def call(
        self, method: str, request: betterproto2.Message, response: type[M], *, seconds: float | None = None
    ) -> M:
        """Call the shim's Sandbox service.

        Raises:
            Unimplemented: the shim has none, or not this method.
            CarinaError: as the shim says, or it does not answer.
        """
        if self.shim is None or self.phase is Phase.DEAD:
            raise Unavailable(f"sandbox {self.id}: its shim is dead")
        try:
            return await self.shim.call_sandbox(method, request, response, seconds=seconds)
        except Unimplemented as error:
            name = self.binary.name if self.binary is not None else self.shim.bootstrap.address
            raise Unimplemented(f"sandbox {self.id}: shim {name} does not serve {method}: {error}") from error

    async def wait(self) -> End:
        """The sandbox's end as the shim tells it, whenever that is."""
        assert self.shim is not None
        with context.no_deadline():
            request = wire.WaitSandboxRequest(sandbox_id=self.id)
            found = await self.shim.call_sandbox("WaitSandbox", request, wire.WaitSandboxResponse, endless=True)
        return End(status=found.exit_status, exited_at=found.exited_at)

    def live(self) -> "Sandboxed":
        """Raises NotFound, FailedPrecondition while it is being created, Unavailable while it is not reached."""
        if self.phase is Phase.GONE:
            raise NotFound(f"sandbox {self.id}: not found")
        if self.phase is Phase.CREATING:
            raise FailedPrecondition(f"sandbox {self.id} is still being created")
        if self.phase is Phase.CONNECTING:
            raise Unavailable(f"sandbox {self.id}: its shim does not answer yet")
        return self
