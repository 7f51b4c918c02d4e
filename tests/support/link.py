"""A link between a client and a server that is slow, far, counted, and can be cut."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

CHUNK = 16 * 1024


@dataclass
class Link:
    """Relays connections to a port. What goes to clients is delayed by `delay` seconds, and limited to `rate` bytes
    a second on each connection; what comes from them, to `up_rate`."""

    target: int
    delay: float = 0.0
    rate: float = 0.0
    up_rate: float = 0.0
    port: int = 0
    sent: int = 0
    """Bytes that clients sent."""
    received: int = 0
    """Bytes that clients were sent."""
    connections: int = 0
    passed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when `wait_for` bytes were sent."""
    wait_for: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(there_writer)
            with contextlib.suppress(OSError):
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._up(reader, there_writer), name="up")
                    group.create_task(self._down(there_reader, writer), name="down")
        except (OSError, ExceptionGroup):
            pass
        finally:
            for one in (writer, *([there_writer] if "there_writer" in locals() else [])):
                self._writers.discard(one)
                one.transport.abort()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        free = loop.time()
        while data := await reader.read(CHUNK):
            if self.up_rate:
                free = max(free, loop.time() - 0.05) + len(data) / self.up_rate
                await asyncio.sleep(max(0.0, free - loop.time()))
            await asyncio.sleep(self.delay)
            writer.write(data)
            await writer.drain()
            self.sent += len(data)
        writer.close()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        free = loop.time()
        while data := await reader.read(CHUNK):
            if self.rate:
                free = max(free, loop.time() - 0.05) + len(data) / self.rate
                await asyncio.sleep(max(0.0, free - loop.time()))
            writer.write(data)
            await writer.drain()
            self.received += len(data)
            if self.wait_for and self.received >= self.wait_for:
                self.passed.set()
        writer.close()


@contextlib.asynccontextmanager
async def link(target: int, *, delay: float = 0.0, rate: float = 0.0, up_rate: float = 0.0) -> AsyncIterator[Link]:
    """A link to a port of this machine, for the time of the block."""
    made = Link(target=target, delay=delay, rate=rate, up_rate=up_rate)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.cut()
        await asyncio.sleep(0)


@contextlib.contextmanager
def threaded_link(target: int, *, delay: float = 0.0, rate: float = 0.0, up_rate: float = 0.0) -> Iterator[Link]:
    """The same beside code that blocks: on a thread of its own."""
    ready: queue.Queue[tuple[Link, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def run() -> None:
        async with link(target, delay=delay, rate=rate, up_rate=up_rate) as made:
            over = asyncio.Event()
            ready.put((made, asyncio.get_running_loop(), over))
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),), name="link")
    thread.start()
    made, loop, over = ready.get(timeout=30)
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(30)
