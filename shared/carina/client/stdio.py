"""The FIFOs between a client and the processes of a container.

The client makes the FIFOs and opens its ends before the task is created, so that no shim ever waits for it;
it reads from when the shim has opened its ends, so that an end of file means what it says.
"""

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from typing import BinaryIO, Final

from carina.tasks import Stdio

CHUNK: Final = 64 * 1024
FIFO_DIRECTORY: Final = "/run/carina/fifo"


class Streams:
    """Copies between the FIFOs of one process and files (or descriptors) of the client."""

    def __init__(self, directory: str, *, terminal: bool, stdin: bool) -> None:
        self._directory = directory
        self._ends: dict[str, int] = {}
        self._copies: list[asyncio.Task[None]] = []
        paths = {}
        for name in ("stdin", "stdout", "stderr"):
            if (name == "stderr" and terminal) or (name == "stdin" and not stdin):
                continue
            path = os.path.join(directory, name)
            os.mkfifo(path, 0o700)
            # Read-write never blocks and keeps the shim's open(2) from waiting for us.
            mode = os.O_RDWR if name == "stdin" else os.O_RDONLY
            self._ends[name] = os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC)
            paths[name] = path
        self.stdio = Stdio(**paths, terminal=terminal)

    def copy_output(self, outputs: dict[str, BinaryIO]) -> None:
        """Start copying; call it once the process has been created."""
        for name in ("stdout", "stderr"):
            if name in self._ends and name in outputs:
                copying = self._copy(self._ends.pop(name), outputs[name])
                self._copies.append(asyncio.create_task(copying, name=f"copy {name}"))

    def take_stdin(self) -> int:
        """The writable end of stdin, now the caller's to close. Closing it is only half: see `TaskService.close_io`."""
        return self._ends.pop("stdin")

    async def drained(self, seconds: float = 10.0) -> None:
        """Wait until everything that the process wrote has been copied."""
        if self._copies:
            await asyncio.wait(self._copies, timeout=seconds)

    async def _copy(self, descriptor: int, output: BinaryIO) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        pipe = os.fdopen(descriptor, "rb", buffering=0)
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            while data := await reader.read(CHUNK):
                with contextlib.suppress(BrokenPipeError):
                    await loop.run_in_executor(None, _write, output, data)
        finally:
            transport.close()

    async def close(self) -> None:
        for copy in self._copies:
            copy.cancel()
        if self._copies:
            await asyncio.wait(self._copies)
        for descriptor in self._ends.values():
            os.close(descriptor)
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)


def _write(output: BinaryIO, data: bytes) -> None:
    output.write(data)
    output.flush()


@contextlib.asynccontextmanager
async def streams(*, terminal: bool = False, stdin: bool = False) -> AsyncIterator[Streams]:
    """FIFOs for one process, gone when the block ends."""
    made = await asyncio.to_thread(_make, terminal=terminal, stdin=stdin)
    try:
        yield made
    finally:
        await made.close()


def _make(*, terminal: bool, stdin: bool) -> Streams:
    os.makedirs(FIFO_DIRECTORY, mode=0o700, exist_ok=True)
    return Streams(tempfile.mkdtemp(dir=FIFO_DIRECTORY), terminal=terminal, stdin=stdin)
