"""The streams of a task that is running already."""

import os
import stat
import tempfile
from typing import TYPE_CHECKING

from carina.cli.process import Foreground, Signals
from carina.client.stdio import Streams
from carina.errors import FailedPrecondition

if TYPE_CHECKING:
    from carina.client import Client
    from carina.tasks import Stdio


class _Attached(Streams):
    """The ends of FIFOs that another client made, and that stay."""

    def __init__(self, stdio: "Stdio") -> None:
        super().__init__(tempfile.mkdtemp(prefix="carina-attach-"), terminal=stdio.terminal, stdin=False)
        for end in self._ends.values():
            os.close(end)
        self._ends.clear()
        for name, mode in (("stdin", os.O_RDWR), ("stdout", os.O_RDONLY), ("stderr", os.O_RDONLY)):
            path = getattr(stdio, name)
            if path and stat.S_ISFIFO(os.stat(path).st_mode):
                self._ends[name] = os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC)
        self.stdio = stdio

    @property
    def open_ends(self) -> int:
        return len(self._ends)


async def attached_again(client: "Client", id: str, *, signals: Signals) -> int:
    """Copy a task's streams until it ends, and pass our signals on; returns its exit status.

    Raises:
        FailedPrecondition: its streams are no FIFOs, or these are gone.
    """
    task = await client.tasks.get(id)
    foreground = Foreground(client=client, signals=signals, id=id, tty=task.stdio.terminal)
    try:
        streams = _Attached(task.stdio)
    except OSError as error:
        raise FailedPrecondition(f"the streams of task {id} are gone: {error.strerror}") from error
    try:
        if not streams.open_ends:
            raise FailedPrecondition(f"task {id} was started without FIFOs: there is nothing to attach to")
        return await foreground.follow(streams)
    finally:
        await streams.close()
