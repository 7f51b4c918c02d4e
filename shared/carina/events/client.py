"""Events over a socket."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

from carina.api.containerd.services.events.v1 import EventsStub, ForwardRequest, PublishRequest, SubscribeRequest
from carina.api.containerd.types import Envelope as WireEnvelope
from carina.errors import InvalidArgument
from carina.events import Envelope
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
