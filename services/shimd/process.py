"""Processes: a container's first one, and those executed in it.

CREATED ──► RUNNING ──► STOPPED, with an exit status. Whoever awaits `ended` gets that, before or after.
An end that comes while its start is still being told is held back until that has been done.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from carina.errors import CarinaError, FailedPrecondition, Internal
from shimd.children import Children
from shimd.console import ConsoleSocket, Terminal
from shimd.loop import Future, Lock, Loop
from shimd.runc import Runc
from shimd.stdio import Logger, Stdio, Streams, open_streams

CREATED: Final = 1
RUNNING: Final = 2
STOPPED: Final = 3
PAUSED: Final = 4


class Group:
    """What the processes of one shim share."""

    def __init__(
        self,
        *,
        loop: Loop,
        children: Children,
        namespace: str,
        socket: str,
        publish: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.loop, self.children, self.publish = loop, children, publish
        self.namespace, self.socket = namespace, socket
        self.logger = Logger(loop, children, namespace=namespace)
        self._number = 0

    def number(self) -> int:
        """One that no other has in this shim."""
        self._number += 1
        return self._number


def start_time(pid: int) -> int:
    """When a process was started, in ticks since boot; 0 if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


class Process:
    def __init__(
        self, group: Group, exec_id: str, stdio: Stdio, *, told: Callable[["Process"], None], spec: bytes = b""
    ) -> None:
        self.exec_id, self.stdio, self.spec = exec_id, stdio, spec
        self.pid = self.started = 0
        self.status = CREATED
        self.exit_status = 0
        self.exited_at = 0
        self.ended: Future[None] = group.loop.future()
        self.lock = Lock(group.loop)
        self._group, self._told = group, told
        self._streams = Streams()
        self._terminal: Terminal | None = None
        self._held = False
        self._end: tuple[int, int] | None = None

    def __enter__(self) -> None:
        """Hold an end back."""
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False
        if self._end is not None:
            self._finish(*self._end)

    def note_end(self, status: int, at: int) -> None:
        """It has ended; `at` is in nanoseconds."""
        self._end = self._end or (status, at)
        if not self._held:
            self._finish(*self._end)

    def _finish(self, status: int, at: int) -> None:
        if self.status == STOPPED:
            return
        self.status, self.exit_status, self.exited_at = STOPPED, status, at
        self._streams.close_stdin()
        self._told(self)
        self.ended.set(None)

    async def launch(self, runc: Runc, id: str, *arguments: str, pid_file: str) -> None:
        """Have runc start it, with its input and output, and learn its pid.

        Raises:
            CarinaError: it can't be; then nothing is left open.
        """
        console = None
        try:
            if self.stdio.terminal:
                self._terminal = Terminal(self._group.loop)
                await self._terminal.open(self.stdio, self._group.logger, id)
                console = ConsoleSocket(f"{self._group.socket}.{self._group.number()}")
                arguments = (*arguments, "--console-socket", console.path)
            else:
                self._streams = await open_streams(self.stdio, self._group.logger, id)
            with self._group.children:
                command = (*arguments, "--pid-file", pid_file, id)
                await runc.run(*command, descriptors=self._streams.given)
                self._claim(_read_pid(pid_file))
            if console is not None and self._terminal is not None:
                self._terminal.begin(console.receive())
            self._streams.hand_over()
        except CarinaError:
            self.close()
            raise
        finally:
            if console is not None:
                console.close()

    def _claim(self, pid: int) -> None:
        self.pid, self.started = pid, start_time(pid)
        self._group.children.claim(pid, self.note_end)

    def signal(self, number: int) -> None:
        """Raises ProcessLookupError if it has ended, OSError for a signal that there is not."""
        if self.status == STOPPED or self._end is not None or not self.pid or start_time(self.pid) != self.started:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def resize(self, *, width: int, height: int) -> None:
        if not self.stdio.terminal:
            raise FailedPrecondition(f"process {self.exec_id or self.pid} has no terminal")
        if self._terminal is not None:
            self._terminal.resize(width=width, height=height)

    def close_stdin(self) -> None:
        self._streams.close_stdin()
        if self._terminal is not None:
            self._terminal.close_stdin()

    async def drained(self) -> None:
        if self._terminal is not None:
            await self._terminal.drained()

    def close(self) -> None:
        """Let go of everything that is open for it."""
        self._streams.close()
        if self._terminal is not None:
            self._terminal.close()
            self._terminal = None

    def record(self) -> dict[str, Any]:
        """For the disk."""
        return {
            "exec_id": self.exec_id,
            "stdio": [self.stdio.stdin, self.stdio.stdout, self.stdio.stderr, self.stdio.terminal],
            "spec": self.spec.decode(errors="replace"),
            "pid": self.pid,
            "started": self.started,
            "status": self.status,
            "exit_status": self.exit_status,
            "exited_at": self.exited_at,
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        self.pid, self.started = int(record["pid"]), int(record["started"])
        self.status, self.exit_status = int(record["status"]), int(record["exit_status"])
        self.exited_at = int(record["exited_at"])
        if self.status == STOPPED:
            self.ended.set(None)


def _read_pid(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError) as error:
        raise Internal(f"the runtime wrote no process id into {path}") from error
