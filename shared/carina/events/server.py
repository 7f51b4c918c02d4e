"""Serves any event service, and any log of events, over gRPC."""

import functools
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypeVar

from carina.api.carina.events import v1 as log
from carina.api.containerd.services.events.v1 import EventsBase, ForwardRequest, PublishRequest, SubscribeRequest
from carina.api.containerd.types import Envelope as WireEnvelope
from carina.api.google.protobuf import Empty
from carina.errors import InvalidArgument
from carina.events import Cursor, Edge, Entry, Envelope, EventLog, EventService, Numbered, Refused, Start
from carina.events.client import cursor_to_wire, from_wire, to_wire
from carina.rpc.any import value_from_wire
from carina.rpc.codec import encode

T = TypeVar("T")

_SHARED: Final = 256
"""Encoded events that are kept for the next subscriber."""
_SHARED_BYTES: Final = 16 << 10
"""Larger payloads are encoded for each."""


class EventsService(EventsBase):
    def __init__(self, service: EventService) -> None:
        self._service = service

    async def publish(self, message: PublishRequest) -> Empty:
        event = value_from_wire(message.event)
        if event is None:
            raise InvalidArgument("the message holds no event")
        await self._service.publish(message.topic, event)
        return Empty()

    async def forward(self, message: ForwardRequest) -> Empty:
        await self._service.forward(_forwarded(message.envelope))
        return Empty()

    async def subscribe(self, message: SubscribeRequest) -> AsyncIterator[WireEnvelope]:
        async for envelope in self._service.subscribe(message.filters):
            yield _shared(_encoded_envelope, envelope)


class LogService(log.LogBase):
    def __init__(self, events: EventLog) -> None:
        self._events = events

    async def subscribe(self, message: log.SubscribeRequest) -> AsyncIterator[log.SubscribeResponse]:
        entries = self._events.read(
            _start(message), message.filters, follow=not message.no_follow, gaps=message.allow_gaps
        )
        async for entry in entries:
            yield _shared(_encoded_entry, entry)

    async def window(self, message: log.WindowRequest) -> log.WindowResponse:
        window = await self._events.window()
        newest = cursor_to_wire(window.newest)
        return log.WindowResponse(newest=newest, oldest=window.oldest, since=window.since, bytes=window.bytes)

    async def append(self, message: log.AppendRequest) -> log.AppendResponse:
        good: list[Numbered] = []
        refused: list[Refused] = []
        for one in message.events:
            try:
                good.append(Numbered(number=one.number, envelope=_forwarded(one.envelope)))
            except InvalidArgument as error:
                refused.append(Refused(number=one.number, reason=str(error)))
        refused.extend(await self._events.append(message.source, good))
        return log.AppendResponse(refused=[log.Refused(number=one.number, reason=one.reason) for one in refused])


# An event goes to every subscriber, and encoding it is most of what that costs: the messages are handed over as bytes,
# and those of the last events are kept.


def _shared(encoded: Callable[[T], bytes], value: T) -> Any:
    envelope = value.envelope if isinstance(value, Entry) else value
    small = not isinstance(envelope, Envelope) or len(envelope.event.value) <= _SHARED_BYTES
    return _remembered(encoded, value) if small else encoded(value)


@functools.lru_cache(maxsize=_SHARED)
def _remembered(encoded: Callable[[T], bytes], value: T) -> bytes:
    return encoded(value)


def _encoded_envelope(envelope: Envelope) -> bytes:
    return encode(to_wire(envelope))


def _encoded_entry(entry: Entry) -> bytes:
    envelope = None if entry.envelope is None else to_wire(entry.envelope)
    return encode(log.SubscribeResponse(cursor=cursor_to_wire(entry.cursor), envelope=envelope, lost=entry.lost))


def _forwarded(wire: WireEnvelope | None) -> Envelope:
    """Raises InvalidArgument: it holds no event, or does not say when that was."""
    if wire is not None and wire.timestamp is None:
        raise InvalidArgument(f"the envelope of an event of topic {wire.topic[:128]!r} has no timestamp")
    return from_wire(wire)


def _start(message: log.SubscribeRequest) -> Start:
    if message.after is not None:
        return Cursor(log=message.after.log, sequence=message.after.sequence)
    if message.since is not None:
        return message.since
    return Edge.OLDEST if message.oldest else Edge.NOW
