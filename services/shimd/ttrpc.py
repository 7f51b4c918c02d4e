"""Both ends of ttrpc on the shim's own loop: the server that clients of the Task service connect to, and connections.

Calls on a connection are answered in any order: many of them wait for the end of a process.
"""

import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

from carina.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    CarinaError,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from carina.ttrpc.frames import MAX_MESSAGE, Frame, Kind, Parser, pack
from shimd.journal import failed
from shimd.loop import READ, WRITE, Future, Loop
from shimd.messages import REQUEST, RESPONSE
from shimd.wire import decode, encode

CODES: Final[dict[type[CarinaError], int]] = {
    CarinaError: 2,
    Cancelled: 1,
    InvalidArgument: 3,
    DeadlineExceeded: 4,
    NotFound: 5,
    AlreadyExists: 6,
    PermissionDenied: 7,
    ResourceExhausted: 8,
    FailedPrecondition: 9,
    Aborted: 10,
    OutOfRange: 11,
    Unimplemented: 12,
    Internal: 13,
    Unavailable: 14,
    DataLoss: 15,
    Unauthenticated: 16,
}
"""As `carina.rpc.codes` has them, which brings a whole gRPC library; a test compares the two."""
MAX_CALLS: Final = 20_000
"""Calls in progress on a connection: a client waits for each of its containers."""
_CHUNK: Final = 256 << 10
_CREDENTIALS: Final = struct.Struct("iII")

Handler = Callable[[str, str, bytes], Awaitable[bytes]]
"""Service, method and request; answers the response."""


class Connection:
    """Frames in both directions over a connected socket."""

    def __init__(
        self, loop: Loop, own: socket.socket, taken: Callable[[Frame], None], lost: Callable[[], None]
    ) -> None:
        self._loop, self._socket, self._taken, self._lost = loop, own, taken, lost
        self._parser = Parser()
        self._unsent = bytearray()
        self.open = True
        own.setblocking(False)
        loop.watch(own.fileno(), READ, self._read)

    def _read(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        for frame in self._parser.feed(data):
            self._taken(frame)

    def send(self, frame: bytes) -> None:
        if self.open:
            self._unsent += frame
            self._write()

    def _write(self) -> None:
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._unsent:
            self._loop.watch(self._socket.fileno(), WRITE, self._write)
        else:
            self._loop.unwatch(self._socket.fileno(), WRITE)

    def close(self) -> None:
        if not self.open:
            return
        self.open = False
        self._loop.unwatch(self._socket.fileno(), READ)
        self._loop.unwatch(self._socket.fileno(), WRITE)
        self._socket.close()
        self._lost()


class Server:
    """Accepts connections of our own user, and answers calls by one handler."""

    def __init__(self, loop: Loop, listener: socket.socket, handler: Handler, changed: Callable[[], None]) -> None:
        self._loop, self._listener, self._handler, self._changed = loop, listener, handler, changed
        self.connections: set[Connection] = set()
        listener.setblocking(False)
        loop.watch(listener.fileno(), READ, self.accept)

    def accept(self) -> None:
        """Take every connection that waits."""
        while True:
            try:
                own, _ = self._listener.accept()
            except OSError:
                return
            _, uid, _ = _CREDENTIALS.unpack(own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if uid not in (0, os.geteuid()):
                own.close()
                continue
            self._serve(own)
            self._changed()

    def _serve(self, own: socket.socket) -> None:
        count = 0

        def taken(frame: Frame) -> None:
            nonlocal count
            count += 1
            self._loop.spawn(answer(frame, full=count > MAX_CALLS), f"ttrpc call {frame.stream}")

        async def answer(frame: Frame, *, full: bool) -> None:
            nonlocal count
            try:
                if full:
                    response = refusal(ResourceExhausted(f"{MAX_CALLS} calls are in progress on this connection"))
                else:
                    response = await self._answer(frame)
                connection.send(pack(frame.stream, Kind.RESPONSE, response))
            finally:
                count -= 1

        def lost() -> None:
            self.connections.discard(connection)
            self._changed()

        connection = Connection(self._loop, own, taken, lost)
        self.connections.add(connection)

    async def _answer(self, frame: Frame) -> bytes:
        try:
            if frame.payload is None:
                raise ResourceExhausted(f"the message is longer than {MAX_MESSAGE} bytes")
            if frame.kind != Kind.REQUEST or frame.stream % 2 == 0:
                raise InvalidArgument(f"frame of kind {frame.kind} on stream {frame.stream} is not a request")
            request = decode(REQUEST, frame.payload)
            payload = await self._handler(request["service"], request["method"], request["payload"])
            response = encode(RESPONSE, {"payload": payload})
            if len(response) > MAX_MESSAGE:
                raise ResourceExhausted(f"the answer is longer than {MAX_MESSAGE} bytes")
            return response
        except CarinaError as error:
            return refusal(error)
        except Exception as error:
            failed("a call", error)
            return refusal(Internal("the shim failed: see its log"))


def refusal(error: CarinaError) -> bytes:
    return encode(RESPONSE, {"status": {"code": CODES.get(type(error), 2), "message": str(error)[:65536]}})


class Client:
    """Calls one at a time to a service behind a socket, which is connected to when it is needed."""

    def __init__(self, loop: Loop, path: str) -> None:
        self._loop, self._path = loop, path
        self._connection: Connection | None = None
        self._stream = 1
        self._answer: Future[bytes] | None = None

    async def call(self, service: str, method: str, payload: bytes, *, seconds: float) -> None:
        """Call a method whose answer is empty.

        Raises:
            Unavailable: nobody answers.
            CarinaError: as the other side says.
        """
        connection = self._connect()
        stream, self._stream = self._stream, self._stream + 2
        self._answer = self._loop.future()
        message: dict[str, Any] = {"service": service, "method": method, "payload": payload}
        message["timeout_nano"] = int(seconds * 1e9)
        connection.send(pack(stream, Kind.REQUEST, encode(REQUEST, message)))
        if not await self._loop.within(self._answer, seconds):
            connection.close()
            raise Unavailable(f"{self._path}: no answer to {method} within {seconds:g} s")
        status = decode(RESPONSE, await self._answer)["status"]
        if status is not None and status["code"]:
            classes = {code: error for error, code in CODES.items()}
            raise classes.get(status["code"], CarinaError)(status["message"])

    def _connect(self) -> Connection:
        if self._connection is not None and self._connection.open:
            return self._connection
        own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            own.setblocking(False)
            own.connect(self._path)
        except OSError as error:
            own.close()
            raise Unavailable(f"{self._path}: {(error.strerror or str(error)).lower()}") from error
        self._stream = 1
        self._connection = Connection(self._loop, own, self._taken, self._lost)
        return self._connection

    def _taken(self, frame: Frame) -> None:
        if self._answer is not None and frame.stream == self._stream - 2:
            self._answer.set(frame.payload or b"")

    def _lost(self) -> None:
        if self._answer is not None:
            self._answer.fail(Unavailable(f"{self._path}: the connection was lost"))
