"""Single calls over one gRPC connection that is not made again, as `carina.ttrpc.client` has them over ttrpc."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import betterproto2
from grpclib.const import Cardinality

from carina.errors import DataLoss, Unavailable
from carina.rpc.client import Channel

M = TypeVar("M", bound=betterproto2.Message)


class Client:
    """One connection. Made by `dial`."""

    def __init__(self, address: str, lost: Callable[[], None] | None = None) -> None:
        self.address = address
        self._lost = lost
        self._channel = Channel(f"unix://{address}")
        self._channel.on_lost = self._disconnected
        self._ended = asyncio.Event()

    @property
    def connected(self) -> bool:
        return not self._ended.is_set()

    async def open(self) -> None:
        """Raises Unavailable."""
        await self._channel.open()

    async def call(self, method: str, request: betterproto2.Message, response: type[M]) -> M:
        """Call `service/method`.

        Raises:
            Unavailable: the connection is lost.
            DeadlineExceeded: the call's deadline came first.
            CarinaError: as the other side answered.
        """
        if not self.connected:
            raise Unavailable(f"{self.address}: the connection is lost")
        call = self._channel.request(f"/{method}", Cardinality.UNARY_UNARY, type(request), response)
        async with call as stream:
            await stream.send_message(request, end=True)
            answer = await stream.recv_message()
        if not isinstance(answer, response):
            raise DataLoss(f"{method} on {self.address}: no answer came")
        return answer

    def close(self) -> None:
        """Calls in progress fail with Unavailable."""
        self._channel.close()

    async def closed(self) -> None:
        """Returns when nothing of the connection is left."""
        await self._ended.wait()

    def _disconnected(self) -> None:
        self._ended.set()
        lost, self._lost = self._lost, None
        if lost is not None:
            lost()


async def dial(path: str, *, seconds: float = 5.0, lost: Callable[[], None] | None = None) -> Client:
    """Connect to a unix socket.

    Raises:
        Unavailable: nobody listens there, or nobody answers in time.
    """
    client = Client(path, lost)
    try:
        async with asyncio.timeout(seconds):
            await client.open()
    except TimeoutError as error:
        client.close()
        raise Unavailable(f"{path}: no connection within {seconds} s") from error
    return client
