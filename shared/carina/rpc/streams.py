"""One HTTP/2 stream as a coroutine sees it: messages in, messages out, headers and trailers."""

import asyncio
import zlib
from collections import deque
from typing import Final

from carina.errors import InvalidArgument, ResourceExhausted, Unimplemented
from carina.rpc.connection import STREAM_WINDOW, Connection
from carina.rpc.frames import Code
from carina.rpc.headers import Headers

MAX_MESSAGE: Final = 16 << 20
"""Bytes in one message, as containerd has it."""
PREFIX: Final = 5
"""A message is preceded by one byte that says whether it is compressed, and four bytes of length."""


class Terminated(Exception):
    """The stream is over before its regular end. `code` is the peer's reason; None if the connection was lost."""

    def __init__(self, code: Code | None, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Stream:
    """Buffers what arrives until it is asked for; the peer may be ahead by one window."""

    __slots__ = (
        "_chunks",
        "_failure",
        "_offset",
        "_reader",
        "_size",
        "_unacknowledged",
        "_writer",
        "connection",
        "encoding",
        "ended",
        "headers",
        "id",
        "local_closed",
        "receive_window",
        "remote_closed",
        "send_window",
        "trailers",
    )

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.id = 0
        self.send_window = self.receive_window = 0
        self.local_closed = self.remote_closed = False
        self.headers: Headers | None = None
        self.trailers: Headers | None = None
        self.ended = False
        self.encoding: str | None = None
        self._chunks: deque[bytes] = deque()
        self._size = self._offset = 0
        self._unacknowledged = 0
        self._failure: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    # --- called by the connection

    def received_headers(self, headers: Headers, *, ended: bool) -> None:
        if self.headers is not None:
            self.trailers = headers
        elif headers.get(":status") not in ("100", "102", "103"):
            self.headers = headers
        self.ended = self.ended or ended
        self._wake_reader()

    def received_data(self, data: bytes, counted: int, *, ended: bool) -> None:
        if data:
            self._chunks.append(data)
            self._size += len(data)
        if counted > len(data):
            self._consumed(counted - len(data))
        self.ended = self.ended or ended
        self._wake_reader()

    def terminated(self, code: Code | None, reason: str) -> None:
        self.fail(Terminated(code, reason))

    def writable(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    # --- called by its owner

    def fail(self, failure: Exception) -> None:
        """Let whoever reads or writes, now or later, get `failure`."""
        if self._failure is None:
            self._failure = failure
        self._wake_reader()
        self.writable()

    @property
    def over(self) -> bool:
        """Nothing can be sent any more."""
        return self.local_closed or self._failure is not None or self.connection.closed

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _arrival(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._reader = self.connection.loop.create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    async def wait_headers(self) -> Headers:
        while self.headers is None:
            await self._arrival()
        return self.headers

    async def wait_end(self) -> None:
        """Until the peer has ended its side; data that nobody asked for is dropped."""
        while not self.ended:
            self._drop()
            await self._arrival()

    def _drop(self) -> None:
        if self._size:
            self._chunks.clear()
            self._consumed(self._size)
            self._size = self._offset = 0

    def _consumed(self, size: int) -> None:
        self._unacknowledged += size
        if self._unacknowledged >= STREAM_WINDOW // 4:
            self.connection.consumed(self, self._unacknowledged)
            self._unacknowledged = 0

    async def receive(self) -> bytes | None:
        """The next message; None at the regular end.

        Raises:
            ResourceExhausted: it is larger than allowed; none of it is buffered beyond the window.
            InvalidArgument: the stream ends within a message.
            Terminated: the stream was cut.
        """
        while self._size < PREFIX:
            if self.ended:
                if self._size:
                    raise InvalidArgument("the stream ends within a message")
                return None
            await self._arrival()
        head = self._take(PREFIX)
        size = int.from_bytes(head[1:], "big")
        if size > MAX_MESSAGE:
            raise ResourceExhausted(f"received message larger than max ({size} vs. {MAX_MESSAGE})")
        data = self._take(size) if self._size >= size else await self._gather(size)
        return _decompressed(data, self.encoding) if head[0] else data

    async def _gather(self, size: int) -> bytes:
        """Collect a message that hasn't arrived as a whole, consuming its parts as they come."""
        parts, missing = [], size
        while missing:
            if not self._size:
                if self.ended:
                    raise InvalidArgument("the stream ends within a message")
                await self._arrival()
                continue
            part = self._take(min(self._size, missing))
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _take(self, size: int) -> bytes:
        """`size` of the bytes that are there. The first chunk is cut by an offset, not by copying its rest."""
        if not size:
            return b""
        chunks, at = self._chunks, self._offset
        self._size -= size
        self._consumed(size)
        first = chunks[0]
        if len(first) - at > size:
            self._offset = at + size
            return first[at : at + size]
        if len(first) - at == size:
            self._offset = 0
            chunks.popleft()
            return first[at:] if at else first
        parts, missing = [], size
        while missing:
            part = memoryview(chunks[0])[at : at + missing]
            parts.append(part)
            missing -= len(part)
            at += len(part)
            if at == len(chunks[0]):
                chunks.popleft()
                at = 0
        self._offset = at
        return b"".join(parts)

    def send_headers(self, headers: Headers, *, end: bool = False) -> None:
        """Raises Terminated."""
        self._check_open()
        self.connection.send_headers(self, headers, end=end)

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self.local_closed:
            raise Terminated(Code.NO_ERROR, "the stream was ended")

    async def send_message(self, data: bytes, *, end: bool = False) -> None:
        """Write one message, waiting for the peer's window and the socket where needed."""
        await self.send_data(b"\0" + len(data).to_bytes(4, "big") + data, end=end)

    async def send_data(self, data: bytes, *, end: bool = False) -> None:
        self._check_open()
        connection = self.connection
        size = len(data)
        if size <= connection.room(self):
            connection.send_data(self, data, end=end)
            return
        view, at = memoryview(data), 0
        while at < size:
            room = min(connection.room(self), size - at)
            if room <= 0:
                await self._space()
                continue
            connection.send_data(self, view[at : at + room], end=end and at + room == size)
            at += room

    async def _space(self) -> None:
        self._writer = self.connection.loop.create_future()
        try:
            await self._writer
        finally:
            self._writer = None
        self._check_open()

    def end(self) -> None:
        """End our side without trailers."""
        self._check_open()
        self.connection.send_data(self, b"", end=True)

    def reset(self, code: Code) -> None:
        self.connection.reset(self, code)
        self._drop()


def _decompressed(data: bytes, encoding: str | None) -> bytes:
    """A compressed message, bounded. Raises ResourceExhausted, InvalidArgument or Unimplemented."""
    if encoding in (None, "identity"):
        raise InvalidArgument("a message is marked as compressed, but no encoding was named")
    if encoding not in ("gzip", "deflate"):
        raise Unimplemented(f"messages compressed with {encoding!r} are not supported")
    unpacker = zlib.decompressobj(wbits=47)
    try:
        plain = unpacker.decompress(data, MAX_MESSAGE + 1)
    except zlib.error as error:
        raise InvalidArgument(f"a compressed message is damaged: {error}") from error
    if len(plain) > MAX_MESSAGE:
        raise ResourceExhausted(f"received message after decompression larger than max {MAX_MESSAGE}")
    if not unpacker.eof:
        raise InvalidArgument("a compressed message is cut off")
    return plain
