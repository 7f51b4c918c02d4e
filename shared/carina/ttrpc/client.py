"""The calling side of ttrpc.

Calls share a connection and are answered in any order. Each takes namespace and deadline from `carina.context`.
When the connection is lost, every call on it fails with Unavailable and `lost` is called, once; it is not made again.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final, TypeVar, cast

import betterproto2

from carina import context
from carina.api.ttrpc import KeyValue, Request, Response
from carina.errors import CarinaError, DataLoss, DeadlineExceeded, ResourceExhausted, Unavailable
from carina.rpc.codec import decode, encode
from carina.rpc.codes import CLASS_OF
from carina.ttrpc.frames import MAX_MESSAGE, NAMESPACE_KEY, TRACE_KEY, Frame, Kind, Parser, pack

M = TypeVar("M", bound=betterproto2.Message)

MAX_CALLS: Final = 100_000
"""Calls waiting for an answer on one connection at the most."""
_LAST_STREAM: Final = 0xFFFF_FFFF
_CLASSES: Final = {status.value: error for status, error in CLASS_OF.items()}


class Client(asyncio.Protocol):
    """One connection. Made by `dial`."""

    def __init__(self, address: str, lost: Callable[[], None] | None = None) -> None:
        self.address = address
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._parser = Parser()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._stream = 1
        self._ended = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    @property
    def connected(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def call(self, method: str, request: betterproto2.Message, response: type[M]) -> M:
        """Call `service/method`.

        Raises:
            Unavailable: the connection is lost.
            DeadlineExceeded: the call's deadline came first.
            CarinaError: as the other side answered.
        """
        service, _, name = method.rpartition("/")
        message = Request(service=service, method=name, payload=encode(request))
        call = context.current()
        carried = ((NAMESPACE_KEY, call.namespace), (TRACE_KEY, call.trace))
        message.metadata = [KeyValue(key=key, value=value) for key, value in carried if value]
        seconds = call.remaining
        if seconds is not None:
            if seconds <= 0:
                raise DeadlineExceeded(f"{method} on {self.address}: no time was left for the call")
            message.timeout_nano = max(1, int(seconds * 1e9))
        started = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                payload = await self._exchange(encode(message))
        except TimeoutError as error:
            took = time.monotonic() - started
            raise DeadlineExceeded(f"{method} on {self.address}: no answer within {took:.1f} s") from error
        return decode(response, self._opened(payload, method))

    async def _exchange(self, payload: bytes) -> bytes:
        await self._writable.wait()
        if not self.connected or self._transport is None:
            raise Unavailable(f"{self.address}: the connection is lost")
        if len(self._waiting) >= MAX_CALLS:
            raise ResourceExhausted(f"{self.address}: {MAX_CALLS} calls are waiting for an answer already")
        stream = self._stream
        if stream > _LAST_STREAM:
            raise ResourceExhausted(f"{self.address}: the connection has used up its stream numbers")
        self._stream += 2
        frame = pack(stream, Kind.REQUEST, payload)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[stream] = answer
        try:
            self._transport.write(frame)
            return await answer
        finally:
            self._waiting.pop(stream, None)

    def _opened(self, payload: bytes, method: str) -> bytes:
        try:
            response = decode(Response, payload)
        except CarinaError as error:
            raise DataLoss(f"{method} on {self.address}: the answer is not a ttrpc response") from error
        if response.status is not None and response.status.code:
            raise _CLASSES.get(response.status.code, CarinaError)(response.status.message)
        return response.payload

    def close(self) -> None:
        """Calls in progress fail with Unavailable."""
        if self._transport is not None:
            self._transport.close()

    async def closed(self) -> None:
        """Returns when nothing of the connection is left."""
        await self._ended.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class

    def data_received(self, data: bytes) -> None:
        for frame in self._parser.feed(data):
            self._settle(frame)

    def _settle(self, frame: Frame) -> None:
        # An answer to a call that was given up meets nobody here.
        answer = self._waiting.get(frame.stream)
        if answer is None or answer.done() or frame.kind != Kind.RESPONSE:
            return
        if frame.payload is None:
            answer.set_exception(ResourceExhausted(f"{self.address}: an answer is longer than {MAX_MESSAGE} bytes"))
        else:
            answer.set_result(frame.payload)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()
        self._writable.set()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Unavailable(f"{self.address}: the connection was lost during the call"))
        self._waiting.clear()
        if self._lost is not None:
            self._lost()
            self._lost = None


async def dial(path: str, *, seconds: float = 5.0, lost: Callable[[], None] | None = None) -> Client:
    """Connect to a unix socket.

    Raises:
        Unavailable: nobody listens there, or nobody accepts in time.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            _, client = await loop.create_unix_connection(lambda: Client(path, lost), path)
    except TimeoutError as error:
        raise Unavailable(f"{path}: no connection within {seconds} s") from error
    except OSError as error:
        raise Unavailable(f"{path}: {(error.strerror or str(error)).lower()}") from error
    return client
