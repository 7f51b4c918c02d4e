"""The serving side of ttrpc.

Handlers raise domain errors, which travel as statuses; anything else is logged here and answered with an id.
Calls in progress are limited per connection: beyond that it is not read any further.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar, cast

import betterproto2

from carina import context
from carina.aio.threads import in_thread
from carina.api.google.rpc import Status
from carina.api.ttrpc import Request, Response
from carina.errors import CarinaError, DeadlineExceeded, InvalidArgument, ResourceExhausted, Unimplemented
from carina.rpc.codec import decode, encode
from carina.rpc.codes import status_of
from carina.rpc.sockets import BACKLOG, bind
from carina.ttrpc.frames import MAX_MESSAGE, NAMESPACE_KEY, Frame, Kind, Parser, pack

Q = TypeVar("Q", bound=betterproto2.Message)
Handler = Callable[[bytes], Awaitable[bytes]]

MAX_CALLS: Final = 64
"""Calls in progress on one connection at the most."""

log = logging.getLogger(__name__)


def unary(request: type[Q], handler: Callable[[Q], Awaitable[betterproto2.Message]]) -> Handler:
    """A handler of bytes out of one of messages."""

    async def handle(payload: bytes) -> bytes:
        return encode(await handler(decode(request, payload)))

    return handle


class _Server:
    """What the connections of one socket share."""

    def __init__(self, handlers: Mapping[str, Handler], group: asyncio.TaskGroup) -> None:
        self.handlers = handlers
        self.group = group
        self.connections: set[_Connection] = set()
        self.idle = asyncio.Event()

    async def close(self) -> None:
        """Close every connection, and wait until nothing of them is left."""
        for connection in list(self.connections):
            connection.close()
        while self.connections:
            self.idle.clear()
            await self.idle.wait()

    async def answer(self, payload: bytes) -> Response:
        try:
            request = decode(Request, payload)
            handler = self.handlers.get(f"{request.service}/{request.method}")
            if handler is None:
                raise Unimplemented(f"method {request.service}/{request.method} is not served here")
            with context.use(_call(request)) as call:
                async with asyncio.timeout(call.remaining):
                    return Response(payload=await handler(request.payload))
        except CarinaError as error:
            return _failed(error)
        except TimeoutError:
            return _failed(DeadlineExceeded("the call's deadline is over"))
        except Exception:
            number = uuid.uuid4().hex[:12]
            log.exception("a ttrpc call failed (%s)", number)
            return _failed(CarinaError(f"internal error {number}: see the log"))


def _call(request: Request) -> context.Call:
    namespace = next((pair.value for pair in request.metadata if pair.key == NAMESPACE_KEY), None)
    deadline = time.monotonic() + request.timeout_nano / 1e9 if request.timeout_nano > 0 else None
    return context.Call(namespace=namespace, deadline=deadline)


def _failed(error: CarinaError) -> Response:
    return Response(status=Status(code=status_of(error).value, message=str(error)))


class _Connection(asyncio.Protocol):
    def __init__(self, server: _Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._parser = Parser()
        self._tasks: set[asyncio.Task[None]] = set()
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.idle.set()
        self.close()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        for frame in self._parser.feed(data):
            task = self._server.group.create_task(self._handle(frame), name=f"ttrpc call {frame.stream}")
            self._tasks.add(task)
            task.add_done_callback(self._finished)
        if len(self._tasks) >= MAX_CALLS and self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._paused and len(self._tasks) < MAX_CALLS and self._transport is not None:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    async def _handle(self, frame: Frame) -> None:
        if frame.payload is None:
            response = _failed(ResourceExhausted(f"the message is longer than {MAX_MESSAGE} bytes"))
        elif frame.kind != Kind.REQUEST or frame.stream % 2 == 0:
            response = _failed(InvalidArgument(f"frame of kind {frame.kind} on stream {frame.stream} is not a request"))
        else:
            response = await self._server.answer(frame.payload)
        payload = encode(response)
        if len(payload) > MAX_MESSAGE:
            payload = encode(_failed(ResourceExhausted(f"the answer is longer than {MAX_MESSAGE} bytes")))
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack(frame.stream, Kind.RESPONSE, payload))


@contextlib.asynccontextmanager
async def serve(path: Path, handlers: Mapping[str, Handler]) -> AsyncIterator[None]:
    """Serve `service/method` -> handler on a unix socket that only our own user may connect to.

    Raises:
        InvalidArgument, FailedPrecondition: as `carina.rpc.sockets.bind` does.
    """
    bound = await in_thread(bind, path, mode=0o600, gid=None)
    try:
        async with asyncio.TaskGroup() as group:
            server = _Server(handlers, group)
            listener = await asyncio.get_running_loop().create_unix_server(
                lambda: _Connection(server), sock=bound.sock, backlog=BACKLOG
            )
            try:
                yield
            finally:
                listener.close()
                await server.close()
                await in_thread(bound.unlink)
    finally:
        bound.sock.close()
