"""Events over a socket."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

from carina.api.carina.events import v1 as log
from carina.api.containerd.services.events.v1 import EventsStub, ForwardRequest, PublishRequest, SubscribeRequest
from carina.api.containerd.types import Envelope as WireEnvelope
from carina.errors import Internal, InvalidArgument
from carina.events import Cursor, Edge, Entry, Envelope, Numbered, Refused, Start, Window
from carina.rpc.any import value_to_wire
from carina.rpc.client import Channel
from carina.typed import TypedValue


def from_wire(wire: WireEnvelope | None) -> Envelope:
    """Raises InvalidArgument: no envelope, or none with an event in it."""
    if wire is None or wire.event is None:
        raise InvalidArgument("the message holds no event")
    return Envelope(
        timestamp=wire.timestamp or datetime.now(UTC),
        namespace=wire.namespace,
        topic=wire.topic,
        event=TypedValue(wire.event.type_url, wire.event.value),
    )


def to_wire(envelope: Envelope) -> WireEnvelope:
    return WireEnvelope(
        timestamp=envelope.timestamp,
        namespace=envelope.namespace,
        topic=envelope.topic,
        event=value_to_wire(envelope.event),
    )


def cursor_from_wire(wire: log.Cursor | None) -> Cursor:
    """Raises Internal."""
    if wire is None:
        raise Internal("the answer names no place in the log")
    return Cursor(log=wire.log, sequence=wire.sequence)


def cursor_to_wire(cursor: Cursor) -> log.Cursor:
    return log.Cursor(log=cursor.log, sequence=cursor.sequence)


class RemoteEventService:
    """`EventService` of the service at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._stub = EventsStub(channel)

    async def publish(self, topic: str, event: TypedValue) -> None:
        await self._stub.publish(PublishRequest(topic=topic, event=value_to_wire(event)))

    async def forward(self, envelope: Envelope) -> None:
        await self._stub.forward(ForwardRequest(envelope=to_wire(envelope)))

    async def subscribe(self, filters: Sequence[str] = ()) -> AsyncIterator[Envelope]:
        """The subscription counts from the first iteration."""
        async for wire in self._stub.subscribe(SubscribeRequest(filters=[*filters])):
            yield from_wire(wire)


class RemoteEventLog:
    """`EventLog` of the service at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._stub = log.LogStub(channel)

    async def read(
        self, start: Start = Edge.NOW, filters: Sequence[str] = (), *, follow: bool = True, gaps: bool = False
    ) -> AsyncIterator[Entry]:
        request = log.SubscribeRequest(filters=[*filters], no_follow=not follow, allow_gaps=gaps)
        if isinstance(start, Cursor):
            request.after = cursor_to_wire(start)
        elif isinstance(start, datetime):
            request.since = start
        elif start is Edge.OLDEST:
            request.oldest = True
        async for answer in self._stub.subscribe(request):
            yield Entry(
                cursor=cursor_from_wire(answer.cursor),
                envelope=None if answer.envelope is None else from_wire(answer.envelope),
                lost=answer.lost,
            )

    async def window(self) -> Window:
        answer = await self._stub.window(log.WindowRequest())
        newest = cursor_from_wire(answer.newest)
        return Window(newest=newest, oldest=answer.oldest, since=answer.since, bytes=answer.bytes)

    async def append(self, source: str, events: Sequence[Numbered]) -> Sequence[Refused]:
        wired = [log.Numbered(number=one.number, envelope=to_wire(one.envelope)) for one in events]
        answer = await self._stub.append(log.AppendRequest(source=source, events=wired))
        return [Refused(number=one.number, reason=one.reason) for one in answer.refused]
