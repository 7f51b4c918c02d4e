"""Events as an asynchronous iterator, from any place in the log, across restarts of services.

A containerd has no log: there a subscription begins with now, its events have no cursor, and it ends with the service.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Self

from carina.errors import DeadlineExceeded, Unavailable, Unimplemented
from carina.events import Cursor, Edge, Envelope, EventLog, EventService, Start
from carina.events.follow import follow
from carina.typed import TypedValue

if TYPE_CHECKING:
    from carina.client.client import Client

MARK: Final = "/carina/subscribed"
"""Topic of the event that shows a subscription without log has begun."""
MARK_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened."""

    topic: str
    """`/containers/create`, `/tasks/exit`, ..."""
    namespace: str
    timestamp: datetime
    value: TypedValue
    cursor: Cursor | None = None
    """Where it is in the log; None where there is no log."""
    lost: bool = False
    """Events before it are not kept any more. Only where the subscription allows gaps."""

    @property
    def fields(self) -> dict[str, Any]:
        """What it says, by name, where its type is one of containerd's."""
        from carina.rpc.any import describe

        found = describe(self.value)
        return found if isinstance(found, dict) else {"value": found}


class Subscription:
    """Iterate over it, once. Entered as a context manager, it has begun when the block begins: nothing from then on
    is missed, however much later the first event is asked for."""

    def __init__(self, client: "Client", filters: Sequence[str], start: Start, *, gaps: bool) -> None:
        self._client = client
        self._filters = filters
        self._start = start
        self._gaps = gaps
        self._waiting: deque[Event] = deque()
        self._events: AsyncGenerator[Event | None, None] | None = None
        self.cursor: Cursor | None = None
        """After everything that was taken so far: where another subscription goes on. None where there is no log."""

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(self, *args: object) -> None:
        if self._events is not None:
            await self._events.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._events is None:
            await self._begin()
        assert self._events is not None
        while not self._waiting:
            event = await anext(self._events)
            if event is not None:
                self._waiting.append(event)
        event = self._waiting.popleft()
        self.cursor = event.cursor or self.cursor
        return event

    async def _begin(self) -> None:
        """Be at the place where it starts. The first that the log says is where that is."""
        log = self._client.available_log
        if log is not None:
            self._events = self._logged(log)
            try:
                await self._first()
                return
            except Unimplemented:
                if self._start is not Edge.NOW:
                    raise
        self._events = _marked(self._client, self._filters)
        await self._first()

    async def _first(self) -> None:
        assert self._events is not None
        event = await anext(self._events)
        if event is not None:
            self._waiting.append(event)

    async def _logged(self, log: EventLog) -> AsyncGenerator[Event | None, None]:
        async for entry in follow(log, self._start, self._filters, gaps=self._gaps):
            if entry.envelope is None:
                self.cursor = entry.cursor if not self._waiting else self.cursor
                yield None
            else:
                yield _event(entry.envelope, entry.cursor, lost=entry.lost)


def _event(envelope: Envelope, cursor: Cursor | None = None, *, lost: bool = False) -> Event:
    return Event(
        topic=envelope.topic,
        namespace=envelope.namespace,
        timestamp=envelope.timestamp,
        value=envelope.event,
        cursor=cursor,
        lost=lost,
    )


async def _marked(client: "Client", filters: Sequence[str]) -> AsyncGenerator[Event | None, None]:
    """None once the subscription has begun, then its events.

    The protocol does not say when it has. So an event of our own is published until it comes.
    """
    topic = f"{MARK}/{secrets.token_hex(8)}"
    # An empty list of filters takes everything.
    wanted = [*filters, f'topic=="{topic}"'] if filters else []
    early: list[Event] = []
    async with aclosing(_subscribed(client.events, wanted)) as envelopes:
        first = asyncio.get_running_loop().create_task(_until(envelopes, topic, early), name="subscribe")
        try:
            await _publish(client, topic, first)
        finally:
            first.cancel()
            await asyncio.wait([first])
        yield None
        for event in early:
            yield event
        async for envelope in envelopes:
            if not envelope.topic.startswith(MARK):
                yield _event(envelope)


async def _subscribed(service: EventService, filters: Sequence[str]) -> AsyncGenerator[Envelope, None]:
    async for envelope in service.subscribe(filters):
        yield envelope


async def _until(envelopes: AsyncIterator[Envelope], topic: str, early: list[Event]) -> None:
    async for envelope in envelopes:
        if envelope.topic == topic:
            return
        if not envelope.topic.startswith(MARK):
            early.append(_event(envelope))
    raise Unavailable("the subscription to events ended before it began")


async def _publish(client: "Client", topic: str, came: "asyncio.Task[None]") -> None:
    for attempt in range(10):
        with client.bound():
            await client.events.publish(topic, TypedValue("google.protobuf.Empty", b""))
        await asyncio.wait([came], timeout=MARK_SECONDS * (attempt + 1) / 55)
        if came.done():
            return came.result()
    raise DeadlineExceeded(f"no event came within {MARK_SECONDS:.0f} s of subscribing")
