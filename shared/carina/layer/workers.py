"""Worker processes, started quickly: forked from a nursery, which is started for the first one and ends when idle."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

import carina
from carina.aio.children import Child
from carina.aio.finish import finish, or_undo
from carina.aio.threads import in_thread
from carina.errors import Internal, ResourceExhausted
from carina.layer.nursery import STARTED
from carina.linux import pidfd

DESCRIPTOR: Final = 3
"""The number that the descriptor given to a worker has there."""
_MAIN: Final = "import sys; sys.path[:] = sys.argv[2:]; from carina.layer.nursery import main; main(int(sys.argv[1]))"
_IDLE_SECONDS: Final = 60.0
_START_SECONDS: Final = 30.0
_REPLY: Final = 4096


class Answer(NamedTuple):
    """What a worker wrote until it ended."""

    output: bytes
    complaint: bytes


class Workers:
    """Runs workers. Those that run when it is closed are ended."""

    def __init__(self, *, idle_seconds: float = _IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._turn = asyncio.Lock()
        self._nursery: _Nursery | None = None
        self._running = 0
        self._timer: asyncio.TimerHandle | None = None
        self._warming: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._warming is not None:
            await asyncio.wait([self._warming])
        if self._timer is not None:
            self._timer.cancel()
        nursery, self._nursery = self._nursery, None
        if nursery is not None:
            await finish(nursery.killed())

    def expect(self) -> None:
        """Workers will be wanted soon: make ready what starting them takes. Returns at once."""
        if self._nursery is None and self._warming is None:
            self._warming = asyncio.get_running_loop().create_task(self._warm(), name="start the nursery of workers")
            self._warming.add_done_callback(self._warmed)

    def _warmed(self, _: object) -> None:
        self._warming = None

    async def _warm(self) -> None:
        with self._used(), contextlib.suppress(Internal):  # Whoever wants a worker is told.
            async with self._turn:
                await self._ready()

    async def run(self, request: bytes, descriptor: int | None = None) -> Answer:
        """Start a worker, with the request as its input and maybe a descriptor, and wait for its end.

        If nobody waits any more it is killed, and its child with it; both are gone when this returns.

        Raises:
            Internal: it can't be started.
            ResourceExhausted: there is no room for another process.
        """
        with self._used():
            worker = await or_undo(self._start(request, descriptor), lambda started: started.killed())
            try:
                return await worker.answer()
            except BaseException:
                await finish(worker.killed())
                raise
            finally:
                worker.close()

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        """While workers run, the nursery stays: they would end with it."""
        if self._timer is not None:
            self._timer.cancel()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._idle)

    def _idle(self) -> None:
        if self._nursery is not None:
            self._nursery.end()
            self._nursery = None

    async def _ready(self) -> "_Nursery":
        if self._nursery is not None and not self._nursery.alive:
            self._idle()
        if self._nursery is None:
            self._nursery = await or_undo(_Nursery.start(), lambda started: started.killed())
        return self._nursery

    async def _start(self, request: bytes, descriptor: int | None) -> "_Worker":
        with contextlib.ExitStack() as stack:
            source = await in_thread(_memory, request)
            stack.callback(os.close, source)
            out, out_writer = os.pipe2(os.O_CLOEXEC)
            stack.callback(os.close, out_writer)
            err, err_writer = os.pipe2(os.O_CLOEXEC)
            stack.callback(os.close, err_writer)
            given = () if descriptor is None else (descriptor,)
            try:
                process = await self._forked((source, out_writer, err_writer, *given))
            except BaseException:
                os.close(out)
                os.close(err)
                raise
        return await _Worker.of(process, out, err)

    async def _forked(self, descriptors: Sequence[int]) -> int:
        """A pidfd of a new worker. A nursery that was killed is replaced once."""
        async with self._turn:
            nursery = await self._ready()
            try:
                return await nursery.fork(descriptors)
            except (OSError, EOFError):
                self._nursery = None
                await finish(nursery.killed())
            nursery = await self._ready()
            try:
                return await nursery.fork(descriptors)
            except (OSError, EOFError) as error:
                raise Internal(f"no process can be started for a layer: {nursery.complaint() or error}") from error


class _Nursery:
    """The process that forks workers, and the socket to it."""

    def __init__(self, child: Child, channel: socket.socket, complaints: int) -> None:
        self._child = child
        self._channel = channel
        self._complaints = complaints

    @classmethod
    async def start(cls) -> Self:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_START_SECONDS)
        complaints = os.memfd_create("complaints", os.MFD_CLOEXEC)
        with theirs:
            try:
                child = await Child.start(
                    [sys.executable, "-I", "-S", "-c", _MAIN, str(os.getpid()), *_paths()],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=complaints,
                    environment={},  # What is in ours is no concern of processes that read what strangers wrote.
                )
            except BaseException as error:
                ours.close()
                os.close(complaints)
                if isinstance(error, OSError):
                    raise Internal(f"no process can be started for a layer: {str(error.strerror).lower()}") from error
                raise
        return cls(child, ours, complaints)

    @property
    def alive(self) -> bool:
        return self._child.returncode is None

    def complaint(self) -> str:
        """The last line that it wrote to its standard error."""
        text = os.pread(self._complaints, _REPLY, max(0, os.fstat(self._complaints).st_size - _REPLY))
        return text.decode("utf-8", "replace").strip().rpartition("\n")[2]

    async def fork(self, descriptors: Sequence[int]) -> int:
        """Raises OSError or EOFError where it is gone, ResourceExhausted where it can't fork."""
        return await in_thread(self._exchange, descriptors)

    def _exchange(self, descriptors: Sequence[int]) -> int:
        socket.send_fds(self._channel, [b"\1"], descriptors)
        reply, received, _, _ = socket.recv_fds(self._channel, _REPLY, 1)
        if not reply:
            raise EOFError("the process that starts them has ended")
        if reply != STARTED or not received:
            raise ResourceExhausted(f"no process can be started for a layer: {reply[1:].decode().lower()}")
        return received[0]

    def end(self) -> None:
        """It ends when it notices, and is reaped by the loop."""
        self._channel.close()
        os.close(self._complaints)

    async def killed(self) -> None:
        self.end()
        await self._child.killed()


class _Worker:
    """A running worker: its pidfd, and what it writes."""

    def __init__(self, process: int, out: asyncio.StreamReader, err: asyncio.StreamReader) -> None:
        self._process = process
        self._out, self._err = out, err
        self._transports: list[asyncio.ReadTransport] = []

    @classmethod
    async def of(cls, process: int, out: int, err: int) -> Self:
        loop = asyncio.get_running_loop()
        worker = cls(process, asyncio.StreamReader(), asyncio.StreamReader())
        for descriptor, reader in ((out, worker._out), (err, worker._err)):
            transport, _ = await loop.connect_read_pipe(
                lambda reader=reader: asyncio.StreamReaderProtocol(reader),  # type: ignore[misc]
                os.fdopen(descriptor, "rb", buffering=0),
            )
            worker._transports.append(transport)
        return worker

    async def answer(self) -> Answer:
        """Both outputs; they end when the worker and its child have."""
        async with asyncio.TaskGroup() as group:
            err = group.create_task(self._err.read(), name="worker's complaints")
            output = await self._out.read()
        return Answer(output, err.result())

    async def killed(self) -> None:
        """End it and its child, which the kernel kills with it."""
        pidfd.kill(self._process)
        for stream in (self._out, self._err):
            while await stream.read(_REPLY):
                pass
        self.close()

    def close(self) -> None:
        if self._process >= 0:
            os.close(self._process)
            self._process = -1
        for transport in self._transports:
            transport.close()


def _memory(data: bytes) -> int:
    descriptor = os.memfd_create("request", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _paths() -> list[str]:
    """What a worker may import from: this package, the standard library, and where the compression modules are."""
    own = Path(carina.__file__).parent.parent
    import isal

    outside = Path(isal.__file__).parent.parent
    return [str(own), *(path for path in sys.path if path and not path.endswith("site-packages")), str(outside)]
