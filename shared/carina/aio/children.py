"""Child processes that are started without copying our page tables, and waited for by descriptor.

uvloop and asyncio's own child watchers fork(2) on the loop's thread: a daemon of sixty megabytes then stands still for
milliseconds, and copies each page that it touches afterwards. `subprocess` uses vfork(2) where nothing has to be run
between fork and exec, and the end of a child is an event on its pidfd.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from carina.aio.finish import or_undo
from carina.aio.threads import in_thread


class Child:
    """A child process; to be waited for, or it stays a zombie."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._descriptor = os.pidfd_open(process.pid)
        self._loop.add_reader(self._descriptor, self._reap)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, a signal's number negated, or None while it runs."""
        return self._process.returncode

    def _reap(self) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        status = self._process.wait()  # It has ended: this returns at once.
        self._ended.set_result(status)

    async def wait(self) -> int:
        """The exit status, or a signal's number negated."""
        return await asyncio.shield(self._ended)

    async def killed(self) -> None:
        """End it and its session's first process group, unless it has ended; it is gone when this returns."""
        if self.returncode is None:
            # Not reaped yet, so the number is still its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            await self.wait()

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        descriptors: Sequence[int] = (),
    ) -> Self:
        """Start a process in a session of its own. `descriptors` are passed on under their numbers.

        A cancellation while it starts ends it again.

        Raises:
            OSError: as execve(2) does.
        """

        def popen() -> "subprocess.Popen[bytes]":
            return subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=tuple(descriptors),
                start_new_session=True,
            )

        async def started() -> Self:
            return cls(await in_thread(popen))

        return await or_undo(started(), lambda child: child.killed())
