"""Serves any event service over gRPC."""

from collections.abc import AsyncIterator

from carina.api.containerd.services.events.v1 import EventsBase, ForwardRequest, PublishRequest, SubscribeRequest
from carina.api.containerd.types import Envelope as WireEnvelope
from carina.api.google.protobuf import Empty
from carina.errors import InvalidArgument
from carina.events import EventService
from carina.events.client import from_wire, to_wire
from carina.rpc.any import value_from_wire


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
        await self._service.forward(from_wire(message.envelope))
        return Empty()

    async def subscribe(self, message: SubscribeRequest) -> AsyncIterator[WireEnvelope]:
        async for envelope in self._service.subscribe(message.filters):
            yield to_wire(envelope)
