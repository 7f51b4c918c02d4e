"""Processes: started without a shell, and reaped whoever's children they once were, since we are their subreaper.

What runs in a container is handed over to us when the runtime that started it ends, and may have ended itself before we
know its number: statuses that nobody has asked for are kept as long as some runtime is at work.
"""

import fcntl
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from carina.linux.libc import call
from shimd.loop import READ, Future, Loop

_PR_SET_CHILD_SUBREAPER: Final = 36
_HIGH: Final = 20
"""Above every number that a descriptor is given to a child as."""

Ended = Callable[[int, int], None]
"""Called with an exit status as a shell tells it (128 and the signal's number), and the time in nanoseconds."""


class Children:
    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: dict[int, Ended] = {}
        self._unclaimed: dict[int, tuple[int, int]] = {}
        self._at_work = 0

    def begin(self) -> None:
        """Become the subreaper, and be told of ends."""
        call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

        def wake() -> None:
            try:
                os.read(reader, 4096)
            except BlockingIOError:
                pass
            self._reap()

        self._loop.watch(reader, READ, wake)

    def _reap(self) -> None:
        while True:
            try:
                pid, code = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            status = 128 + os.WTERMSIG(code) if os.WIFSIGNALED(code) else os.WEXITSTATUS(code)
            now = time.time_ns()
            ended = self._waiting.pop(pid, None)
            if ended is not None:
                ended(status, now)
            elif self._at_work:
                self._unclaimed[pid] = status, now

    def claim(self, pid: int, ended: Ended) -> None:
        """Be told of the end of a process that is ours or is being handed over to us."""
        if pid in self._unclaimed:
            found = self._unclaimed.pop(pid)
            self._loop.soon(lambda: ended(*found))
        else:
            self._waiting[pid] = ended

    def start(
        self,
        arguments: Sequence[str],
        descriptors: Mapping[int, int],
        environment: Mapping[str, str] | None = None,
    ) -> tuple[int, Future[int]]:
        """Start a program with `descriptors` (number in the child -> ours); its pid, and its status later.

        Raises:
            OSError: it can't be executed.
        """
        moved = {number: fcntl.fcntl(own, fcntl.F_DUPFD_CLOEXEC, _HIGH) for number, own in descriptors.items()}
        try:
            pid = os.posix_spawnp(
                arguments[0],
                list(arguments),
                os.environ if environment is None else environment,
                file_actions=[(os.POSIX_SPAWN_DUP2, own, number) for number, own in moved.items()],
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM],
                setsigmask=[],
            )
        finally:
            for descriptor in moved.values():
                os.close(descriptor)
        status = self._loop.future()
        self._waiting[pid] = lambda code, _: status.set(code)
        return pid, status

    def __enter__(self) -> "Children":
        """A runtime is at work, and its children may end before they are claimed."""
        self._at_work += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._at_work -= 1
        if not self._at_work:
            self._unclaimed.clear()
