"""Tasks: a state machine beside the container's own, which only its shim knows.

CREATING ──► LIVE ──► GONE         created here, then deleted, or cleaned up after its shim's death
    └──────────────► GONE          creation failed: nothing remains
CONNECTING ──► LIVE                found on disk at the start, or its connection was lost
    └──────────────► GONE          its shim is dead
"""

import asyncio
import enum
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from carina.linux import pidfd
from carina.tasks import Exit
from taskd.bundle import Bundle
from taskd.process import Process
from taskd.shim import Shim


class Phase(enum.Enum):
    CREATING = enum.auto()
    CONNECTING = enum.auto()
    LIVE = enum.auto()
    GONE = enum.auto()


@dataclass(slots=True, eq=False)
class Task:
    bundle: Bundle
    phase: Phase
    binary: Path | None = None
    runtime: str = ""
    sandbox: str = ""
    """The sandbox whose shim it is on; empty for a shim that was started for tasks."""
    made: bool = False
    """Whether there is a bundle."""
    shim: Shim | None = None
    pid: int = 0
    processes: dict[str, Process] = field(default_factory=dict)
    """Those whose end somebody has asked for, by exec id."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Not set while it is being connected."""
    stop_log: Callable[[], None] = lambda: None
    _pidfd: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.bundle.namespace, self.bundle.id

    @property
    def id(self) -> str:
        return self.bundle.id

    def enter(self, phase: Phase) -> None:
        self.phase = phase
        if phase is Phase.CONNECTING:
            self.settled.clear()
        else:
            self.settled.set()

    def hold_process(self, pid: int) -> None:
        """Keep a hold of the first process, to know it for certain should its shim die."""
        if pid and self._pidfd is None:
            self.pid = pid
            self._pidfd = pidfd.open_process(pid)

    def kill_process(self) -> None:
        if self._pidfd is not None:
            pidfd.kill(self._pidfd)

    def own_exit_status(self) -> int | None:
        """How the first process ended, as the kernel tells; None if it has not ended or can't be told."""
        return None if self._pidfd is None else pidfd.exit_status(self._pidfd)

    def release(self, exit: Exit) -> None:
        """Nothing more will be heard of it: whoever waits gets `exit`."""
        for process in self.processes.values():
            process.end(Exit(exec_id=process.exec_id, pid=process.pid, status=exit.status, exited_at=exit.exited_at))
        self.processes.clear()
        self.stop_log()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
