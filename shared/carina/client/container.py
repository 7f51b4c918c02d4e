"""A container at a client's hands: its record, its root file system, its task."""

import contextlib
import json
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from carina.aio.finish import finish, or_undo
from carina.client.process import Task, running, streams
from carina.containers import Container as Record
from carina.errors import CarinaError, NotFound
from carina.mount import Mount
from carina.tasks import NO_STDIO, Stdio

if TYPE_CHECKING:
    from carina.client.client import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A container that has run to its end."""

    exit_status: int
    stdout: bytes
    stderr: bytes


class Container:
    """A container. As a context manager it is removed at the end of the block, and killed if it runs."""

    def __init__(self, client: "Client", record: Record) -> None:
        self.record = record
        self._client = client

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def terminal(self) -> bool:
        """Whether its specification gives its process a terminal."""
        spec = json.loads(self.record.spec.value) if self.record.spec else {}
        return bool(spec.get("process", {}).get("terminal"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        with contextlib.suppress(NotFound):
            await finish(self.remove(force=True))

    async def rootfs(self) -> list[Mount]:
        """The mounts of its root file system; none for a container without a snapshot."""
        from carina.client import run

        with self._client.bound():
            return await run.rootfs(self._client, self.record)

    @contextlib.asynccontextmanager
    async def task(self, *, stdin: bool = False) -> AsyncIterator[Task]:
        """Run it for the block, with what it prints as streams, and what it reads with `stdin`.

        What still runs at the end of the block is killed. Output that nobody reads holds the process up.

        Raises:
            AlreadyExists: it runs already.
            NotFound: the program, the runtime or the container is not there.
        """
        task = Task(self._client, self.id)
        mounts = await self.rootfs()

        def make(stdio: Stdio) -> Coroutine[Any, Any, int]:
            return self._client.tasks.create(self.id, rootfs=mounts, stdio=stdio)

        async with running(self._client, task, make, names=streams(stdin=stdin, terminal=self.terminal)):
            yield task

    async def start(self, stdio: Stdio = NO_STDIO) -> Task:
        """Start it and let it run on, also when this program ends. Its output is dropped, or goes where `stdio` says.

        Raises what `task` raises.
        """
        task = Task(self._client, self.id)
        mounts = await self.rootfs()
        with self._client.bound():
            making = self._client.tasks.create(self.id, rootfs=mounts, stdio=stdio)
            await or_undo(making, lambda _: task.discard())
            try:
                task.pid = await self._client.tasks.start(self.id)
            except BaseException:
                await finish(task.discard())
                raise
        return task

    async def running(self) -> Task:
        """Its task, started by whomever, without streams. Raises NotFound."""
        with self._client.bound():
            found = await self._client.tasks.get(self.id)
        return Task(self._client, self.id, pid=found.pid)

    async def remove(self, *, force: bool = False) -> None:
        """Remove record and snapshot; with `force`, a task is killed first.

        Raises:
            NotFound: it is removed already.
            FailedPrecondition: it has a task.
        """
        from carina.client import run

        with self._client.bound():
            if force:
                with contextlib.suppress(CarinaError):
                    await self._client.tasks.get(self.id)
                    await Task(self._client, self.id).discard()
            await run.remove(self._client, self.record)
