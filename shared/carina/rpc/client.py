"""Channels: gRPC clients over unix sockets that carry the call's context and raise the domain's errors."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError

from carina import context, errors, tracing
from carina.config import socket_path
from carina.rpc import codec, codes, metadata
from carina.rpc.connection import Connection
from carina.rpc.frames import Code
from carina.rpc.headers import Headers, Pair
from carina.rpc.streams import Stream, Terminated

if TYPE_CHECKING:
    from grpclib.client import Channel as GrpclibChannel
    from grpclib.client import Stream as _Stream
    from grpclib.metadata import Deadline

    GrpclibStream = _Stream[Any, Any]
else:
    # Stubs ask for the methods, not for the classes: grpclib's client and its h2 need not be loaded.
    GrpclibChannel = GrpclibStream = object

DIAL_SECONDS: Final = 10.0
"""How long a peer may take to accept a connection and to greet."""

_RESET: Final = {
    Code.CANCEL: Status.CANCELLED,
    Code.REFUSED_STREAM: Status.UNAVAILABLE,
    Code.ENHANCE_YOUR_CALM: Status.RESOURCE_EXHAUSTED,
    Code.INADEQUATE_SECURITY: Status.PERMISSION_DENIED,
}


def connect(address: str, *, namespace: str = "") -> "Channel":
    """A channel to `unix:///path`; it connects with the first call, and again with the next after a connection broke.

    `namespace` is that of calls made in none.

    Raises:
        InvalidArgument: the address is none.
    """
    return Channel(address, namespace=namespace)


class Channel(GrpclibChannel):
    """What generated stubs call through. Nothing of grpclib's own implementation is used."""

    def __init__(self, address: str, *, namespace: str = "") -> None:
        self.address = address
        self.namespace = namespace
        self._socket = str(socket_path(address))
        self._connection: Connection | None = None
        self._dialling: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        self._refused = 0.0, ""
        """When the last dial failed, and why."""
        self._all: set[Connection] = set()
        self.on_lost: Callable[[], None] = lambda: None
        """Called when a connection ends."""

    def __repr__(self) -> str:
        return f"Channel({self.address!r})"

    def __del__(self) -> None:
        """Connections that are left over warn for themselves."""

    @property
    def in_flight(self) -> int:
        """Number of calls that are under way."""
        return sum(len(connection.streams) for connection in self._all)

    def ready(self) -> Connection | None:
        """The connection, if a call can start on it at once."""
        connection = self._connection
        if connection is None or connection.draining or len(connection.streams) >= connection.max_streams:
            return None
        return connection if connection.loop is asyncio.get_running_loop() else None

    async def open(self) -> Connection:
        """A connection on which a call can start now.

        Raises:
            Unavailable: nobody answers.
        """
        while (connection := self.ready()) is None:
            if self._usable():
                assert self._connection is not None
                await self._connection.vacancy()
                continue
            begun = time.monotonic()
            async with self._turn():
                if not self._usable():
                    if self._refused[0] > begun:  # whoever waited for another's dial shares its outcome
                        raise errors.Unavailable(self._refused[1])
                    self._connection = await self._dial_noting()
        return connection

    async def _dial_noting(self) -> Connection:
        try:
            return await self._dial()
        except errors.Unavailable as error:
            self._refused = time.monotonic(), str(error)
            raise

    def _turn(self) -> asyncio.Lock:
        """The lock of those who want to dial, of the loop that runs."""
        loop = asyncio.get_running_loop()
        if self._dialling is None or self._dialling[0] is not loop:
            self._dialling = loop, asyncio.Lock()
        return self._dialling[1]

    def _usable(self) -> bool:
        """Whether the connection stands, and belongs to the loop that runs: a channel may outlive one."""
        connection = self._connection
        return connection is not None and not connection.draining and connection.loop is asyncio.get_running_loop()

    async def _dial(self) -> Connection:
        loop = asyncio.get_running_loop()
        connection: Connection | None = None
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                _, connection = await loop.create_unix_connection(
                    lambda: Connection(client=True, ended=self._ended), self._socket
                )
                assert connection.greeting is not None
                await connection.greeting
        except BaseException as error:
            if connection is not None:
                connection.abort()
            if isinstance(error, TimeoutError):
                raise errors.Unavailable(f"what listens at {self.address} does not answer") from None
            if isinstance(error, OSError):
                raise errors.Unavailable(f"nothing answers at {self.address}: {error.strerror or error}") from error
            raise
        if connection.closed:
            raise errors.Unavailable(f"what listens at {self.address} closed the connection")
        self._all.add(connection)
        return connection

    def _ended(self, connection: Connection) -> None:
        self._all.discard(connection)
        self.on_lost()

    def request(
        self,
        name: str,
        cardinality: Cardinality,
        request_type: Any,
        reply_type: Any,
        *,
        timeout: float | None = None,
        deadline: "Deadline | None" = None,
        metadata: Any = None,
    ) -> "ClientStream":
        call = context.current()
        if self.namespace and not call.namespace:
            call = replace(call, namespace=self.namespace)
        limits = [call.deadline] if call.deadline is not None else []
        if timeout is not None:
            limits.append(time.monotonic() + timeout)
        if deadline is not None:
            limits.append(time.monotonic() + deadline.time_remaining())
        limit = min(limits, default=None)
        return ClientStream(self, name, cardinality, reply_type, call=call, deadline=limit, extra=metadata)

    @contextlib.asynccontextmanager
    async def attended(self, name: str, seconds: float) -> AsyncIterator[None]:
        """The calls of the block last as long as their work, and the peer lives: it answers pings.

        Raises:
            Unavailable: it has answered none for so long; `name` is what it is called.
        """
        loop = asyncio.get_running_loop()

        async def watch() -> None:
            await self._lifeless(seconds)
            limit.reschedule(loop.time())

        try:
            async with asyncio.timeout(None) as limit:
                watching = loop.create_task(watch(), name=f"attend {name}")
                try:
                    yield
                finally:
                    watching.cancel()
        except TimeoutError as error:
            if limit.expired():
                raise errors.Unavailable(f"{name} does not answer since {seconds:.3g} s") from error
            raise

    async def _lifeless(self, seconds: float) -> None:
        """Return once the peer has not answered a ping for so long."""
        while True:
            connection = self._connection
            if connection is not None and not connection.closed:
                pong = connection.ping()
                if not (await asyncio.wait([pong], timeout=seconds))[0]:
                    return
            await asyncio.sleep(seconds / 4)

    def drop(self) -> None:
        """Let go of a connection that nobody reads from; the next call makes another."""
        for connection in list(self._all):
            connection.abort()

    def close(self) -> None:
        """Close the connection; calls in flight fail with Unavailable."""
        for connection in list(self._all):
            connection.close()
        self._connection = None


@functools.lru_cache(maxsize=1024)
def _request(path: str, limit: str | None, pairs: tuple[Pair, ...]) -> Headers:
    fixed = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode("ascii")),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"carina"),
        (b"grpc-accept-encoding", b"gzip,deflate"),
    ]
    if limit is not None:
        fixed.append((b"grpc-timeout", limit.encode()))
    return Headers((*fixed, *pairs))


class ClientStream(GrpclibStream):
    """One call: grpclib's interface over our streams."""

    def __init__(
        self,
        channel: Channel,
        path: str,
        cardinality: Cardinality,
        reply_type: Any,
        *,
        call: context.Call,
        deadline: float | None,
        extra: Any,
    ) -> None:
        self._to = channel
        self._path = path
        self._cardinality = cardinality
        self._reply_type = reply_type
        self._limit = deadline
        self._request_id = call.request
        recorder = tracing.recorder()
        self._span: tracing.Span | None = None
        if recorder is not None and call.trace is None:
            call = replace(call, trace=tracing.unrecorded())
        elif recorder is not None:
            self._span = recorder.begin(path[1:], "client", call.trace, {"rpc.system": "grpc", "peer": channel.address})
            call = replace(call, trace=self._span.traceparent)
        self._pairs = metadata.context_pairs(call) + (metadata.extra_pairs(extra) if extra else ())
        self._wire: Stream | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._received = 0
        self._sender: asyncio.Task[Any] | None = None
        self.initial_metadata = None
        self.trailing_metadata = None

    async def __aenter__(self) -> "ClientStream":
        return self

    async def send_request(self, *, end: bool = False) -> None:
        limit = None
        if self._limit is not None:
            remaining = self._limit - time.monotonic()
            if remaining <= 0:
                raise self._late()
            limit = metadata.timeout(remaining)
        connection = self._to.ready() or await self._open()
        self._wire = Stream(connection)
        request = _request(self._path, limit, self._pairs)
        if self._request_id is not None:
            request = request.identified(self._request_id.encode())
        connection.start(self._wire, request, end=end)
        if self._limit is not None:
            self._timer = connection.loop.call_later(self._limit - time.monotonic(), self._expire)

    async def _open(self) -> Connection:
        if self._limit is None:
            return await self._to.open()
        timer = asyncio.timeout(self._limit - time.monotonic())
        try:
            async with timer:
                return await self._to.open()
        except TimeoutError:
            raise self._late() from None

    def _late(self) -> errors.DeadlineExceeded:
        return errors.DeadlineExceeded(f"{self._path}: no answer from {self._to.address} in the time given")

    def _expire(self) -> None:
        if self._wire is not None and not self._wire.ended:
            self._wire.fail(self._late())
            self._wire.reset(Code.CANCEL)

    async def send_message(self, message: Any, *, end: bool = False) -> None:
        data = codec.encode(message)
        if self._wire is None:
            await self.send_request()
        if self._sender is None and self._cardinality.client_streaming:
            self._watch_sender()
        assert self._wire is not None
        with self._translated():
            await self._wire.send_message(data, end=end or not self._cardinality.client_streaming)

    async def end(self) -> None:
        assert self._wire is not None
        if not self._wire.local_closed:
            with self._translated():
                self._wire.end()

    async def recv_initial_metadata(self) -> None:
        assert self._wire is not None
        with self._translated():
            headers = await self._wire.wait_headers()
            metadata.raise_for_response(headers)
            if headers.get("grpc-status") is not None:
                metadata.raise_for_status(headers)
            self._wire.encoding = headers.get("grpc-encoding")

    async def recv_message(self) -> Any:
        assert self._wire is not None
        if self._received == 0:
            await self.recv_initial_metadata()
        with self._translated():
            data = await self._wire.receive()
        if data is None:
            return None
        self._received += 1
        try:
            return codec.decode(self._reply_type, data)
        except errors.InvalidArgument as error:
            raise errors.Internal(f"{self._path}: the answer from {self._to.address} is wrong: {error}") from error

    def __aiter__(self) -> "ClientStream":
        return self

    async def __anext__(self) -> Any:
        message = await self.recv_message()
        if message is None:
            raise StopAsyncIteration
        return message

    async def recv_trailing_metadata(self) -> None:
        """Wait for the end of the call. Raises what its status says."""
        assert self._wire is not None
        with self._translated():
            await self._wire.wait_end()
            self._raise_for_end()

    def _raise_for_end(self) -> None:
        assert self._wire is not None
        end = self._wire.trailers or self._wire.headers
        assert end is not None
        metadata.raise_for_response(self._wire.headers or end)
        metadata.raise_for_status(end)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except GRPCError as error:
            raise codes.to_domain(error) from None
        except Terminated as error:
            raise self._translate(error) from None

    def _translate(self, error: Terminated) -> errors.CarinaError:
        """What the peer said before it cut the stream, or else that it was cut."""
        assert self._wire is not None
        try:
            if self._wire.ended:
                self._raise_for_end()
        except GRPCError as said:
            return codes.to_domain(said)
        status = Status.UNAVAILABLE if error.code is None else _RESET.get(error.code, Status.INTERNAL)
        return codes.CLASS_OF[status](f"{self._path}: the call to {self._to.address} was cut: {error}")

    async def cancel(self) -> None:
        if self._wire is not None:
            self._wire.reset(Code.CANCEL)

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None and self._wire is not None:
                await self.recv_trailing_metadata()
                if not self._cardinality.server_streaming and not self._received:
                    raise errors.Internal(f"{self._path}: {self._to.address} sent no answer")
        except Exception as own:
            error = own
            raise
        finally:
            if self._span is not None:
                self._span.end("" if error is None else str(error) or type(error).__name__)
            if self._timer is not None:
                self._timer.cancel()
            if self._wire is not None and not (self._wire.local_closed and self._wire.remote_closed):
                self._wire.reset(Code.CANCEL)
            self._release_sender()

    def _watch_sender(self) -> None:
        """Generated stubs send from a task that they forget: if the source of its messages fails, so does the call."""
        task = asyncio.current_task()
        if task is not None and getattr(task.get_coro(), "__name__", "") == "_send_messages":
            self._sender = task
            task.add_done_callback(self._sender_ended)

    def _sender_ended(self, sender: "asyncio.Task[Any]") -> None:
        error = None if sender.cancelled() else sender.exception()
        if isinstance(error, Exception) and self._wire is not None and not self._wire.ended:
            self._wire.fail(error)
            self._wire.reset(Code.CANCEL)

    def _release_sender(self) -> None:
        """A task that still sends, which generated stubs start and forget, ends with the call."""
        if self._sender is not None:
            self._sender.cancel()
