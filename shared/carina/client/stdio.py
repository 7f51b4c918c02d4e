"""The FIFOs between a client and the processes of a container.

The client makes the FIFOs and opens its ends before the task is created, so that no shim ever waits for it;
it reads from when the shim has opened its ends, so that an end of file means what it says.
No thread reads or writes here: one that is stuck in a slow pipe could not be cancelled.
"""

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from carina.aio.finish import or_undo
from carina.errors import CarinaError
from carina.tasks import Stdio

CHUNK: Final = 64 * 1024
PIPE_BUF: Final = 4096
"""Bytes that a pipe takes without blocking once it is writable (pipe(7))."""

T = TypeVar("T")


class Fifos:
    """The FIFOs of one process in a directory of their own, and our ends of them, open."""

    def __init__(self, directory: str, names: Collection[str], *, terminal: bool = False) -> None:
        self._directory = directory
        self._ends: dict[str, int] = {}
        paths = {}
        for name in names:
            path = os.path.join(directory, name)
            os.mkfifo(path, 0o600)
            # Read-write never blocks and keeps the shim's open(2) from waiting for us.
            mode = os.O_RDWR if name == "stdin" else os.O_RDONLY
            self._ends[name] = os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC)
            paths[name] = path
        self.stdio = Stdio(**paths, terminal=terminal)

    async def close(self) -> None:
        for descriptor in self._ends.values():
            os.close(descriptor)
        self._ends.clear()
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)


class Streams(Fifos):
    """Copies between the FIFOs of one process and descriptors of the client, which stay the client's."""

    def __init__(self, directory: str, *, terminal: bool, stdin: bool) -> None:
        names = [*(["stdin"] if stdin else []), "stdout", *([] if terminal else ["stderr"])]
        super().__init__(directory, names, terminal=terminal)
        self._outputs: set[asyncio.Task[None]] = set()
        self._input: asyncio.Task[None] | None = None
        self._moved = 0
        self._writing = 0

    def copy_output(self, outputs: Mapping[str, int]) -> None:
        """Start copying; call it once the process has been created."""
        for name in ("stdout", "stderr"):
            if name in self._ends and name in outputs:
                copying = self._copy_output(self._ends.pop(name), outputs[name])
                self._outputs.add(asyncio.create_task(copying, name=f"copy {name}"))

    def copy_input(self, source: int, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start copying to the process's standard input; call it once the process has been started.

        `close` is called at the end of `source`: the shim holds the FIFO open too (see `TaskService.close_io`).
        """
        self._input = asyncio.create_task(self._copy_input(source, close), name="copy stdin")

    async def attend(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` while output is copied.

        Raises:
            OSError: output can't be written any more; `work` is cancelled.
        """
        task = asyncio.create_task(work, name="attend")
        try:
            pending: set[asyncio.Task[Any]] = {task, *self._outputs}
            while not task.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for copy in done - {task}:
                    copy.result()
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def drained(self, seconds: float = 10.0) -> None:
        """Wait until everything that the process wrote has been copied.

        A child of the process may keep the FIFOs open: who has had nothing more to say for `seconds` is not waited for.

        Raises:
            OSError: output can't be written any more.
        """
        pending = set(self._outputs)
        while pending:
            before = self._moved
            done, pending = await asyncio.wait(pending, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for copy in done:
                copy.result()
            if not done and not self._writing and self._moved == before:
                return

    async def _copy_output(self, descriptor: int, output: int) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        pipe = os.fdopen(descriptor, "rb", buffering=0)
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            while data := await reader.read(CHUNK):
                self._writing += 1
                try:
                    await _write(output, data)
                finally:
                    self._writing -= 1
                self._moved += len(data)
        finally:
            transport.close()

    async def _copy_input(self, source: int, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with contextlib.suppress(OSError):
            while data := await _read(source):
                await _write(self._ends["stdin"], data)
        with contextlib.suppress(CarinaError):
            await close()
        # Only now: what is in the FIFO would be lost if nobody had it open.
        os.close(self._ends.pop("stdin"))

    async def close(self) -> None:
        copies = [*self._outputs, *([self._input] if self._input else [])]
        for copy in copies:
            copy.cancel()
        if copies:
            await asyncio.wait(copies)
        for copy in copies:
            if not copy.cancelled():
                copy.exception()  # whoever cares has had it from `attend` or `drained`
        await super().close()


async def _read(descriptor: int) -> bytes:
    """What there is; empty at the end."""
    loop = asyncio.get_running_loop()
    while True:
        await _until(loop.add_reader, loop.remove_reader, descriptor)
        if os.isatty(descriptor) and os.tcgetpgrp(descriptor) != os.getpgrp():
            # Reading the terminal from the background would stop us (SIGTTIN).
            await asyncio.sleep(0.5)
            continue
        with contextlib.suppress(BlockingIOError):
            return os.read(descriptor, CHUNK)


async def _write(descriptor: int, data: bytes) -> None:
    loop = asyncio.get_running_loop()
    rest = memoryview(data)
    while rest:
        await _until(loop.add_writer, loop.remove_writer, descriptor)
        with contextlib.suppress(BlockingIOError):
            rest = rest[os.write(descriptor, rest[:PIPE_BUF]) :]


async def _until(add: Callable[..., Any], remove: Callable[[int], Any], descriptor: int) -> None:
    """Wait until a descriptor is ready; a regular file, which can't be waited for, always is."""
    ready = asyncio.Event()
    try:
        add(descriptor, ready.set)
    except PermissionError:
        await asyncio.sleep(0)
        return
    try:
        await ready.wait()
    finally:
        remove(descriptor)


@contextlib.asynccontextmanager
async def streams(below: Path, *, terminal: bool = False, stdin: bool = False) -> AsyncIterator[Streams]:
    """FIFOs for one process in a new directory below `below`, gone when the block ends."""
    making = asyncio.to_thread(lambda: Streams(directory(below), terminal=terminal, stdin=stdin))
    made = await or_undo(making, lambda streams: streams.close())
    try:
        yield made
    finally:
        await made.close()


def directory(below: Path) -> str:
    """A new directory for the FIFOs of one process."""
    below.mkdir(mode=0o700, parents=True, exist_ok=True)
    return tempfile.mkdtemp(dir=below)
