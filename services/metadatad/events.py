"""The event exchange. Every event is in the log before a subscriber sees it, and all see the same order.

A subscriber that does not keep up is cut off with ResourceExhausted; it never holds up anybody else.
"""

import asyncio
import re
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from carina import context
from carina.context import validate_identifier
from carina.errors import CarinaError, InvalidArgument, ResourceExhausted, Unavailable
from carina.events import Envelope
from carina.events.fields import Payload, fields
from carina.filters import Adaptor, matcher
from carina.typed import TypedValue
from metadatad.records import Records, Transaction

MAX_WAITING: Final = 4096
"""Events that may wait for one subscriber."""
MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
"""Bytes of payloads that may wait for one subscriber."""
MAX_PAYLOAD: Final = 4 * 1024 * 1024
_COMPONENT: Final = re.compile(r"[A-Za-z0-9]+(?:[-_.]+[A-Za-z0-9]+)*")


class Exchange:
    """The subscribers of this process."""

    def __init__(self, payload: Payload, *, max_waiting: int = MAX_WAITING) -> None:
        self._payload = payload
        self._max_waiting = max_waiting
        # Weak: a subscription whose iterator was dropped without being closed is dropped with it.
        self._subscriptions: weakref.WeakSet[_Subscription] = weakref.WeakSet()
        self._closed = False

    def close(self) -> None:
        """End every subscription, after what is waiting, with Unavailable: the client is to come back."""
        self._closed = True
        for subscription in list(self._subscriptions):
            subscription.end(Unavailable("the event service is stopping"))

    def deliver(self, envelopes: Sequence[Envelope]) -> None:
        """Queue events for every subscriber they match. Called on the loop, in the order of commits."""
        for subscription in list(self._subscriptions):
            for envelope in envelopes:
                subscription.offer(envelope)

    def subscribe(self, filters: Sequence[str] = ()) -> AsyncIterator[Envelope]:
        """See `carina.events.EventService`. The subscription counts from this call, not from the first iteration."""
        if self._closed:
            raise Unavailable("the event service is stopping")
        matches = matcher(filters, self._fields)
        subscription = _Subscription(matches, self._max_waiting)
        self._subscriptions.add(subscription)
        return self._stream(subscription)

    def _fields(self, envelope: Envelope) -> Adaptor:
        return fields(envelope, self._payload)

    async def _stream(self, subscription: "_Subscription") -> AsyncIterator[Envelope]:
        try:
            while True:
                yield await subscription.next()
        finally:
            self._subscriptions.discard(subscription)


class _Subscription:
    def __init__(self, matches: Callable[[Envelope], bool], max_waiting: int) -> None:
        self._matches = matches
        self._max_waiting = max_waiting
        self._waiting: deque[Envelope] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._end: CarinaError | None = None

    def offer(self, envelope: Envelope) -> None:
        if self._end is not None or not self._matches(envelope):
            return
        size = len(envelope.event.value)
        if len(self._waiting) < self._max_waiting and self._bytes + size <= MAX_WAITING_BYTES:
            self._waiting.append(envelope)
            self._bytes += size
            self._arrived.set()
        else:
            reason = f"the subscriber did not keep up: {len(self._waiting)} events were waiting, and one was lost"
            self.end(ResourceExhausted(reason))

    def end(self, error: CarinaError) -> None:
        """No more events: what waits is given out, then the error."""
        self._end = self._end or error
        self._arrived.set()

    async def next(self) -> Envelope:
        while not self._waiting:
            if self._end is not None:
                raise self._end
            self._arrived.clear()
            await self._arrived.wait()
        envelope = self._waiting.popleft()
        self._bytes -= len(envelope.event.value)
        return envelope


class Events:
    """`carina.events.EventService`: the exchange, with the log in the metadata database."""

    def __init__(self, records: Records, exchange: Exchange) -> None:
        self._records = records
        self._exchange = exchange

    async def publish(self, topic: str, event: TypedValue) -> None:
        namespace = context.namespace()
        _validate(topic, event)

        def emit(transaction: Transaction) -> None:
            transaction.emit(namespace, topic, event)

        await self._records.write(emit)

    async def forward(self, envelope: Envelope) -> None:
        validate_identifier(envelope.namespace, "namespace")
        _validate(envelope.topic, envelope.event)

        def emit(transaction: Transaction) -> None:
            transaction.emit(envelope.namespace, envelope.topic, envelope.event, time=envelope.timestamp)

        await self._records.write(emit)

    def subscribe(self, filters: Sequence[str] = ()) -> AsyncIterator[Envelope]:
        return self._exchange.subscribe(filters)


def _validate(topic: str, event: TypedValue) -> None:
    if not topic.startswith("/") or topic == "/":
        raise InvalidArgument(f"topic {topic[:128]!r} must begin with '/' and name something")
    for component in topic[1:].split("/"):
        if _COMPONENT.fullmatch(component) is None:
            raise InvalidArgument(f"topic {topic[:128]!r} has the component {component[:64]!r}, which is not valid")
    if len(event.value) > MAX_PAYLOAD:
        raise InvalidArgument(f"the payload of an event of {topic} is over {MAX_PAYLOAD} bytes long")
