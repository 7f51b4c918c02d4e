"""The FIFOs of a process as asyncio's streams: what it prints is a `StreamReader`, what it reads a `StreamWriter`.

Who does not read holds the process up when the pipe is full, as with any pipe; nothing is kept in memory beyond a
stream's limit.
"""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Awaitable, Callable, Collection, Coroutine
from io import FileIO
from pathlib import Path
from typing import Any, Final, TypeVar

from carina.aio.finish import finish, or_undo
from carina.client.stdio import Fifos, directory
from carina.errors import CarinaError

LIMIT: Final = 1 << 20
"""Bytes of a stream that wait to be read, and of a line at the most; and of a pipe in the kernel."""

Transport = TypeVar("Transport", bound=asyncio.BaseTransport)
CloseInput = Callable[[], Awaitable[None]]


class Pipes(Fifos):
    """Our ends as streams. Connect the output once the process has been made, the input once it has been started."""

    def __init__(self, directory: str, names: Collection[str], *, terminal: bool = False) -> None:
        super().__init__(directory, names, terminal=terminal)
        self._transports: list[asyncio.BaseTransport] = []
        self._feeding: _Input | None = None
        for descriptor in self._ends.values():
            # Fewer turns of the loop for the same bytes; refused beyond what the machine grants a user.
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, LIMIT)

    async def output(self, name: str) -> asyncio.StreamReader:
        """`stdout` or `stderr`. It ends when the process and all its children have closed it, or with `close`."""
        reader = asyncio.StreamReader(limit=LIMIT)
        pipe = os.fdopen(self._ends.pop(name), "rb", buffering=0)
        loop = asyncio.get_running_loop()
        await self._connected(loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe), pipe)
        return reader

    async def input(self, close: CloseInput) -> asyncio.StreamWriter:
        """The process's standard input. When the writer is closed and everything is in the pipe, `close` is called:
        the shim holds the FIFO open too (see `TaskService.close_io`)."""
        loop = asyncio.get_running_loop()
        path = self.stdio.stdin
        # The end that is open for reading and writing stays open: what is in the FIFO would be lost with the last one.
        pipe = os.fdopen(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC), "wb", buffering=0)
        feeding = self._feeding = _Input(close, self._release_input)
        transport = await self._connected(loop.connect_write_pipe(lambda: feeding, pipe), pipe)
        return asyncio.StreamWriter(transport, feeding, None, loop)

    async def _connected(self, connecting: Coroutine[Any, Any, tuple[Transport, Any]], pipe: FileIO) -> Transport:
        """The transport of a pipe, which `close` closes whatever happens to the caller meanwhile."""

        async def connect() -> Transport:
            try:
                transport, _ = await connecting
            except BaseException:
                pipe.close()
                raise
            self._transports.append(transport)
            return transport

        return await finish(connect())

    def _release_input(self) -> None:
        """Only now: what is in the FIFO would be lost if nobody had it open."""
        if "stdin" in self._ends:
            os.close(self._ends.pop("stdin"))

    async def close(self) -> None:
        for transport in self._transports:
            if transport.is_closing():
                continue
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()
            else:
                transport.close()
        await asyncio.sleep(0)  # the loop closes transports with its next turn
        if self._feeding is not None:
            await self._feeding.ended()
        await super().close()


class _Input(asyncio.StreamReaderProtocol):
    """Closes the process's input when everything that was written is in the pipe."""

    def __init__(self, close: CloseInput, release: Callable[[], None]) -> None:
        super().__init__(asyncio.StreamReader())
        self._close_input = close
        self._release = release
        self._closing: asyncio.Task[None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = asyncio.get_running_loop().create_task(self._end(exc), name="close stdin")

    async def _end(self, exc: Exception | None) -> None:
        try:
            with contextlib.suppress(CarinaError):  # it may have ended by itself
                await self._close_input()
        finally:
            self._release()
            super().connection_lost(exc)

    async def ended(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            await asyncio.wait([self._closing])


async def pipes(below: Path, names: Collection[str], *, terminal: bool = False) -> Pipes:
    """FIFOs for one process in a new directory below `below`. The caller closes them."""
    making = asyncio.to_thread(lambda: Pipes(directory(below), names, terminal=terminal))
    return await or_undo(making, lambda made: made.close())
