"""gRPC servers on unix sockets."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from grpclib.const import Handler, Status

from carina import context, tracing
from carina.aio.threads import in_thread
from carina.config import socket_path
from carina.errors import CarinaError, InvalidArgument, PermissionDenied, Unavailable
from carina.rpc import calls, metadata, metering
from carina.rpc.client import Channel
from carina.rpc.connection import Connection
from carina.rpc.frames import Code
from carina.rpc.guard import Admission, Guard, Peer
from carina.rpc.headers import REQUEST, Headers
from carina.rpc.health import Health, Version
from carina.rpc.metrics import Metrics
from carina.rpc.proxy import Relay
from carina.rpc.sockets import Bound, admits, bind, credentials, peer, refuse_unclaimed
from carina.rpc.streams import Stream

log = logging.getLogger(__name__)

Route = Callable[[str], Channel | None]
"""Method path -> the channel that it is passed on to. Raises Unavailable where nobody answers there."""

_UNTRACED: Final = "/grpc.health.v1.Health/"
"""Supervisors ask it all the time, and it tells nothing of what is done for clients."""
SETTLE_SECONDS: Final = 1.0
"""How long a peer may take to take notice that we stop, and a cancelled call to end."""


@contextlib.asynccontextmanager
async def serve(
    address: str,
    handlers: Sequence[Any],
    *,
    name: str,
    mode: int = 0o660,
    gid: int | None = None,
    grace: float = 5.0,
    route: Route | None = None,
    admission: Admission | None = None,
) -> AsyncIterator["Listener"]:
    """Serve `handlers` at `unix:///path` while the block runs, then drain.

    Health and Version are served as well. A method that no handler has is passed on to the channel that `route` names
    for its path, undecoded; without one it is answered UNIMPLEMENTED.
    Draining: nobody connects any more, peers are told to start no new calls, calls in flight have `grace` seconds to
    end, and what is left is answered UNAVAILABLE. The peer must be root, this process's user, or of the group `gid`,
    unless `admission` decides who may connect, and what they may call.

    Raises:
        InvalidArgument: the address is none, its directory does not exist, or a socket was passed to this process that
            it does not listen on: the sockets that a service has beside this one are bound before.
        FailedPrecondition: another process listens there.
    """
    bound = await in_thread(bind, socket_path(address), mode=mode, gid=gid)
    try:
        refuse_unclaimed()
        listener = Listener(address, handlers, name=name, gid=bound.gid, route=route, admission=admission)
        server = await asyncio.get_running_loop().create_unix_server(listener.connect, sock=bound.sock, backlog=1024)
        try:
            yield listener
        finally:
            server.close()
            await _end(listener, bound, grace)
    finally:
        bound.sock.close()


async def _end(listener: "Listener", bound: Bound, grace: float) -> None:
    # Unlinked at once: a successor may bind the address while this process still completes its calls.
    await in_thread(bound.unlink)
    await listener.drain(grace)


class _Call(Stream):
    """A stream with the task that answers it."""

    __slots__ = ("task",)

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.task: asyncio.Task[None] | None = None

    def terminated(self, code: Code | None, reason: str) -> None:
        super().terminated(code, reason)
        if self.task is not None:
            self.task.cancel()


class Listener:
    """The calls and connections at one address."""

    def __init__(
        self,
        address: str,
        handlers: Sequence[Any],
        *,
        name: str,
        gid: int | None,
        route: Route | None,
        admission: Admission | None = None,
    ) -> None:
        self.address = address
        self.health = Health()
        """`health.set(name, serving)` says whether a part of the service can do its work."""
        self.metrics = Metrics(name)
        """What others say of themselves through this service is added to `metrics.sources`."""
        self._name = name
        self._gid = gid
        self._route = route
        self._admission = admission
        self._guards: dict[Connection, Guard] = {}
        self._mapping: Mapping[str, Handler] = {
            path: handler
            for served in (*handlers, self.health, self.metrics, Version())
            for path, handler in served.__mapping__().items()
        }
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._relays: set[Relay] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._alone = asyncio.Event()
        self._alone.set()
        self._cut = False

    @property
    def in_flight(self) -> int:
        """Number of calls in flight."""
        return len(self._tasks) + len(self._relays)

    def connect(self) -> Connection:
        return _Admitting(self)

    def connected(self, connection: Connection, transport: asyncio.BaseTransport) -> bool:
        sock = transport.get_extra_info("socket")
        if sock is not None and not self._admits(connection, peer(sock)):
            return False
        self._connections.add(connection)
        self._alone.clear()
        return True

    def _admits(self, connection: Connection, who: Peer) -> bool:
        if self._admission is None:
            if not admits(who, gid=self._gid):
                log.warning("a connection to %s from a user without the right to it was refused", self.address)
                return False
            return True
        try:
            guard = self._admission(who)
        except PermissionDenied:
            return False
        if guard is not None:
            self._guards[connection] = guard
        return True

    def disconnected(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._guards.pop(connection, None)
        if not self._connections:
            self._alone.set()

    def accept(self, connection: Connection, number: int, headers: Headers, ended: bool) -> None:
        refused = calls.refusal(headers)
        path = headers.get(":path") or ""
        method = self._mapping.get(path)
        if self._guards and (guard := self._guards.get(connection)) is not None:
            method = guard.mapping.get(path, method)
            if refused is None and (said := guard.refusal(path, headers)):
                refused = Status.PERMISSION_DENIED, said
        if refused is None and method is None and self._route is not None:
            try:
                channel = self._route(path)
            except Unavailable as error:
                channel, refused = None, (Status.UNAVAILABLE, str(error))
            if channel is not None:
                self._relay(channel, connection, number, headers, ended=ended)
                return
        stream = _Call(connection)
        connection.adopt(stream, number, ended=ended)
        stream.received_headers(headers, ended=ended)
        if refused is not None:
            calls.finish(stream, *refused, accepted=False)
        elif method is None:
            calls.finish(stream, Status.UNIMPLEMENTED, calls.unknown(path, self._mapping), accepted=False)
        else:
            self._start(stream, method, path)

    def _start(self, stream: _Call, method: Handler, path: str) -> None:
        assert stream.headers is not None
        try:
            peer = connection.peer if isinstance(connection := stream.connection, _Admitting) else None
            call = metadata.read_call(stream.headers, time.monotonic(), method=path, peer=peer)
        except InvalidArgument as error:
            calls.finish(stream, Status.INTERNAL, str(error), accepted=False)
            return
        stream.encoding = stream.headers.get("grpc-encoding")
        recorder, span = tracing.recorder(), None
        if recorder is not None and not path.startswith(_UNTRACED):
            span = recorder.begin(path[1:], "server", call.trace, _attributes(path))
            call = replace(call, trace=span.traceparent)
        served = calls.ServerStream(stream, method, call)
        stream.task = asyncio.get_running_loop().create_task(self._answer(served, method, call, path, span), name=path)
        self._tasks.add(stream.task)
        self._idle.clear()
        stream.task.add_done_callback(self._ended)

    async def _answer(
        self, stream: calls.ServerStream, method: Handler, call: context.Call, path: str, span: tracing.Span | None
    ) -> None:
        counts, begun = metering.method(path, method.cardinality), time.monotonic()
        counts.started()
        status = Status.CANCELLED
        try:
            await calls.answer(stream, method, call, name=path)
            status = stream.status
        except asyncio.CancelledError:
            if not self._cut:
                raise
            status = Status.UNAVAILABLE
            stream.finish(status, f"{self._name} is stopping")
        finally:
            seconds = time.monotonic() - begun
            counts.handled(status, seconds)
            if span is not None:
                span.end("" if status is Status.OK else status.name)
            if log.isEnabledFor(logging.DEBUG):
                with context.use(call):
                    log.debug("%s in %.1f ms", status.name, seconds * 1000)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a call ended with an error of its own handling", exc_info=error)
        self._check_idle()

    def _check_idle(self) -> None:
        if not self._tasks and not self._relays:
            self._idle.set()

    def _relay(self, channel: Channel, connection: Connection, number: int, headers: Headers, *, ended: bool) -> None:
        path = headers.get(":path") or ""
        metering.method(path).started()
        named = None
        if metadata.request_of(headers) is None:
            named = metadata.new_request().encode()
            headers = headers.without(REQUEST.encode()) if headers.get(REQUEST) is not None else headers
        recorder, span = tracing.recorder(), None
        if recorder is not None:
            span = recorder.begin(path[1:], "server", headers.get(metadata.TRACE), _attributes(path))
            headers = headers.traced(span.traceparent)
        if named is not None:
            headers = headers.identified(named)
        relay = Relay(connection, number, headers, ended=ended, done=self._relayed)
        relay.upstream, relay.named, relay.span = channel.address, named, span
        self._relays.add(relay)
        self._idle.clear()
        ready = channel.ready()
        if ready is not None:
            relay.start(ready)
            return
        task = asyncio.get_running_loop().create_task(_dial(channel, relay), name=f"dial {channel.address}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def relays_to(self, address: str) -> list[tuple[Connection | None, str]]:
        """Connection and method of every call that is passed on to an address."""
        return [
            (relay.down.connection, relay.request.get(":path") or "")
            for relay in self._relays
            if relay.upstream == address
        ]

    def give_up(self, address: str, text: str) -> None:
        """Answer every call that is passed on to an address with UNAVAILABLE."""
        for relay in [relay for relay in self._relays if relay.upstream == address]:
            relay.fail(Status.UNAVAILABLE, text)

    def _relayed(self, relay: Relay) -> None:
        self._relays.discard(relay)
        path, seconds = relay.request.get(":path") or "", time.monotonic() - relay.begun
        metering.method(path).handled(relay.status, seconds)
        if relay.span is not None:
            relay.span.end("" if relay.status is Status.OK else relay.status.name)
        if log.isEnabledFor(logging.DEBUG):
            with context.use(
                metadata.told(relay.request, method=path, peer=getattr(relay.down.connection, "peer", None))
            ):
                log.debug("%s in %.1f ms, by %s", relay.status.name, seconds * 1000, relay.upstream)
        self._check_idle()

    async def drain(self, grace: float) -> None:
        """End everything; takes `grace` and two settling times at the most."""
        self.health.end()
        for connection in self._connections:
            connection.go_away(final=False)
        await _bounded(_all([connection.ping() for connection in self._connections]), SETTLE_SECONDS)
        for connection in self._connections:
            connection.go_away(final=True)
        await _bounded(self._idle.wait(), grace)
        await self._cut_off()
        for connection in list(self._connections):
            connection.close()
        await _bounded(self._alone.wait(), SETTLE_SECONDS)
        for connection in list(self._connections):
            connection.abort()

    async def _cut_off(self) -> None:
        if not self.in_flight:
            return
        log.info("%d calls did not end in time and are cut off", self.in_flight)
        self._cut = True
        for relay in list(self._relays):
            relay.fail(Status.UNAVAILABLE, f"{self._name} is stopping")
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=SETTLE_SECONDS)
        if self._tasks:
            log.warning("%d calls do not react to their cancellation", len(self._tasks))


def _attributes(path: str) -> Mapping[str, str | int]:
    """By OpenTelemetry's conventions for RPC."""
    service, _, method = path[1:].rpartition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}


async def _all(futures: "Sequence[asyncio.Future[None]]") -> None:
    for future in futures:
        await future


async def _bounded(work: Awaitable[Any], seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await work


async def _dial(channel: Channel, relay: Relay) -> None:
    try:
        relay.start(await channel.open())
    except CarinaError as error:
        relay.fail(Status.UNAVAILABLE, str(error))


class _Admitting(Connection):
    """A connection that begins with a look at who the peer is."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(client=False, accept=listener.accept, ended=listener.disconnected)
        self._listener = listener
        self.peer: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        sock = transport.get_extra_info("socket")
        if sock is not None:
            pid, uid, _ = credentials(sock)
            self.peer = f"pid={pid} uid={uid}"
        if self._listener.connected(self, transport):
            super().connection_made(transport)
        else:
            self.closed = True
            transport.close()
