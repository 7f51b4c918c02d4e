"""Processes of containers: the first one, which is the task, and those executed in it."""

import asyncio
import contextlib
import json
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from carina import context
from carina.aio.finish import finish, or_undo
from carina.client.pipes import Pipes, pipes
from carina.errors import CarinaError, FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from carina.oci import spec as oci
from carina.tasks import Exit, Stdio
from carina.tasks import Process as State
from carina.typed import TypedValue

if TYPE_CHECKING:
    from carina.client.client import Client

OUTAGE: Final = 30.0
"""Seconds for which services may be away while we wait for a process."""
CLEAN_UP: Final = 10.0
"""Seconds for each call that removes a process which is not wanted any more."""
QUIET: Final = 10.0
"""Seconds without a byte after which the output of a process that has ended is taken for complete."""
LIMIT: Final = 64 << 20
"""Bytes that `communicate` gathers of one stream."""


class Process:
    """A process of a container: its streams, where it was given any, its signals, its end."""

    def __init__(self, client: "Client", container_id: str, exec_id: str = "", *, pid: int = 0) -> None:
        self.container_id = container_id
        self.exec_id = exec_id
        """Empty for the container's first process."""
        self.pid = pid
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self.exit: Exit | None = None
        """How it ended, once `wait` has returned."""
        self._client = client

    @property
    def _name(self) -> str:
        return f"{self.container_id}/{self.exec_id}" if self.exec_id else self.container_id

    async def wait(self) -> Exit:
        """Wait until it has ended. Services may be restarted meanwhile.

        Raises:
            NotFound: it is deleted.
            Unavailable: they have been away for half a minute.
        """
        since: float | None = None
        while self.exit is None:
            try:
                with self._client.bound(), context.no_deadline():
                    self.exit = await self._client.tasks.wait(self.container_id, self.exec_id)
            except Unavailable:
                since = since or time.monotonic()
                if time.monotonic() > since + OUTAGE:
                    raise
                await asyncio.sleep(0.2)
        return self.exit

    async def kill(self, number: int = signal.SIGTERM, *, all: bool = False) -> None:
        """Send a signal; with `all`, to every process of the container. Raises NotFound where it has ended."""
        with self._client.bound():
            await self._client.tasks.kill(self.container_id, number, exec_id=self.exec_id, all=all)

    async def resize(self, columns: int, rows: int) -> None:
        """Give its terminal a size."""
        with self._client.bound():
            await self._client.tasks.resize_pty(self.container_id, columns, rows, exec_id=self.exec_id)

    async def state(self) -> State:
        """What the service knows of it. Raises NotFound."""
        with self._client.bound():
            return await self._client.tasks.get(self.container_id, self.exec_id)

    async def delete(self, *, force: bool = False) -> Exit:
        """Remove it, which has ended; with `force`, it is killed first.

        Raises:
            NotFound: it is deleted already.
            FailedPrecondition: it runs.
        """
        with self._client.bound():
            if force:
                await self._end()
            return await self._client.tasks.delete(self.container_id, self.exec_id)

    async def communicate(self, data: bytes = b"", *, limit: int = LIMIT, quiet: float = QUIET) -> tuple[bytes, bytes]:
        """Write `data` to it, close its input, and gather what it prints until it ends: output and errors.

        A child of it may keep its output open: what prints nothing for `quiet` seconds after the end is not waited for.

        Raises:
            ResourceExhausted: it prints more than `limit` bytes; it is killed.
        """
        out, err = bytearray(), bytearray()
        try:
            await self._converse(data, out, err, limit, quiet)
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        if max(len(out), len(err)) > limit:
            raise ResourceExhausted(f"process {self._name} printed more than {limit} bytes")
        return bytes(out), bytes(err)

    async def _converse(self, data: bytes, out: bytearray, err: bytearray, limit: int, quiet: float) -> None:
        async with asyncio.TaskGroup() as group:
            feeding = group.create_task(self._feed(data), name=f"feed {self._name}")
            gathering = {
                group.create_task(self._gather(reader, into, limit), name=f"gather what {self._name} prints")
                for reader, into in ((self.stdout, out), (self.stderr, err))
                if reader is not None
            }
            await self.wait()
            feeding.cancel()
            while gathering:
                moved = len(out) + len(err)
                done, gathering = await asyncio.wait(gathering, timeout=quiet, return_when=asyncio.FIRST_COMPLETED)
                if not done and moved == len(out) + len(err):
                    break
            for task in gathering:
                task.cancel()

    async def _feed(self, data: bytes) -> None:
        if self.stdin is not None:
            with contextlib.suppress(ConnectionError):
                self.stdin.write(data)
                await self.stdin.drain()
            self.stdin.close()

    async def _gather(self, reader: asyncio.StreamReader, into: bytearray, limit: int) -> None:
        while piece := await reader.read(1 << 18):
            into += piece
            if len(into) > limit:
                with contextlib.suppress(CarinaError):
                    await self.kill(signal.SIGKILL)
                return

    async def _end(self) -> None:
        if self.exit is None:
            everybody = not self.exec_id
            with contextlib.suppress(NotFound):
                await self._client.tasks.kill(self.container_id, signal.SIGKILL, exec_id=self.exec_id, all=everybody)
            with contextlib.suppress(NotFound):
                await self.wait()

    async def discard(self) -> None:
        """Kill and delete it, as far as it is there."""
        with contextlib.suppress(CarinaError, TimeoutError), self._client.bound(), context.no_deadline():
            with context.deadline(CLEAN_UP):
                async with asyncio.timeout(CLEAN_UP):
                    await self._end()
            with context.deadline(CLEAN_UP):
                await self._client.tasks.delete(self.container_id, self.exec_id)

    async def connect_output(self, made: Pipes) -> None:
        """Take the streams that it prints to. Once it has been made, and before it is started."""
        if made.stdio.stdout:
            self.stdout = await made.output("stdout")
        if made.stdio.stderr:
            self.stderr = await made.output("stderr")

    async def connect_input(self, made: Pipes) -> None:
        """Take the stream that it reads from. Once it has been started."""
        if made.stdio.stdin:
            self.stdin = await made.input(self._close_input)

    async def _close_input(self) -> None:
        with self._client.bound():
            await self._client.tasks.close_io(self.container_id, exec_id=self.exec_id)


class Task(Process):
    """A container's first process, and with it the running container."""

    @contextlib.asynccontextmanager
    async def exec(
        self,
        args: Sequence[str],
        options: oci.Options = oci.NO_WISHES,
        *,
        stdin: bool = False,
        terminal: bool = False,
        exec_id: str = "",
    ) -> AsyncIterator[Process]:
        """A further process in the container, with streams, for the block; one that still runs at its end is killed.

        Raises:
            NotFound: the container, or the program, is not there.
            AlreadyExists: a process of that `exec_id` is.
            FailedPrecondition: the task does not run.
        """
        process = Process(self._client, self.container_id, exec_id or f"exec-{secrets.token_hex(6)}")
        with self._client.bound():
            record = await self._client.containers.get(self.container_id)
        if record.spec is None:
            raise FailedPrecondition(f"container {self.container_id} has no specification")
        made = oci.process(json.loads(record.spec.value), args, options)
        made["terminal"] = terminal or made["terminal"]
        value = TypedValue(oci.PROCESS_TYPE_URL, json.dumps(made).encode())

        def make(stdio: Stdio) -> Coroutine[Any, Any, None]:
            return self._client.tasks.exec(self.container_id, process.exec_id, value, stdio)

        async with running(self._client, process, make, names=streams(stdin=stdin, terminal=made["terminal"])):
            yield process

    async def pause(self) -> None:
        """Freeze every process of the container."""
        with self._client.bound():
            await self._client.tasks.pause(self.container_id)

    async def resume(self) -> None:
        with self._client.bound():
            await self._client.tasks.resume(self.container_id)

    async def pids(self) -> list[int]:
        """Every process of the container, as the machine numbers them."""
        with self._client.bound():
            return [found.pid for found in await self._client.tasks.pids(self.container_id)]


def streams(*, stdin: bool, terminal: bool) -> list[str]:
    """Which streams a process gets: a terminal has one for all that is printed."""
    return [*(["stdin"] if stdin else []), "stdout", *([] if terminal else ["stderr"])]


@contextlib.asynccontextmanager
async def running(
    client: "Client",
    process: Process,
    make: Callable[[Stdio], Coroutine[Any, Any, object]],
    *,
    names: Sequence[str],
) -> AsyncIterator[None]:
    """Make a process with streams and start it; when the block ends, kill it if it runs, and delete it."""
    made = await pipes(client.fifo_directory, names, terminal="stderr" not in names)
    try:
        with client.bound():
            await or_undo(make(made.stdio), lambda _: process.discard())
        try:
            with client.bound():
                await process.connect_output(made)
                process.pid = await client.tasks.start(process.container_id, process.exec_id)
                await process.connect_input(made)
            yield
        finally:
            await finish(process.discard())
    finally:
        await finish(made.close())
