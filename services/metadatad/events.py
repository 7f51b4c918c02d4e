"""The event service: what may be published, and how it gets into the log. Reading is the exchange's."""

import re
from collections.abc import AsyncIterator, Sequence
from typing import Final

from carina import context, faults
from carina.context import MAX_IDENTIFIER_LENGTH, validate_identifier
from carina.errors import InvalidArgument, OutOfRange, ResourceExhausted
from carina.events import Edge, Entry, Envelope, Numbered, Refused, Start, Window
from carina.sqlite import to_time
from carina.typed import TypedValue
from metadatad import eventlog
from metadatad.exchange import Exchange
from metadatad.records import Records, Transaction

MAX_PAYLOAD: Final = 4 * 1024 * 1024
MAX_NUMBER: Final = 2**63 - 1
_COMPONENT: Final = re.compile(r"[A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)*")


class Events:
    """`carina.events.EventService` and `carina.events.EventLog` over the metadata database."""

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
        _validate_envelope(envelope)
        await self._records.write(lambda transaction: _emit(transaction, envelope))

    async def append(self, source: str, events: Sequence[Numbered]) -> Sequence[Refused]:
        validate_identifier(source, "source of events")
        good, refused = _sifted(events)

        def take(transaction: Transaction) -> None:
            taken = eventlog.taken(transaction.connection, source)
            new = [one for one in good if one.number > taken]
            for one in new:
                _emit(transaction, one.envelope)
            if new:
                eventlog.take(transaction.connection, source, new[-1].number)

        await self._records.write(take)
        faults.point("metadatad.events.appended")
        return refused

    def read(
        self, start: Start = Edge.NOW, filters: Sequence[str] = (), *, follow: bool = True, gaps: bool = False
    ) -> AsyncIterator[Entry]:
        return self._exchange.read(start, filters, follow=follow, gaps=gaps)

    async def window(self) -> Window:
        newest = self._exchange.newest
        found = await self._records.read(eventlog.extent)
        since = None if found.since is None else to_time(found.since)
        return Window(newest=newest, oldest=found.oldest, since=since, bytes=found.bytes)

    def subscribe(self, filters: Sequence[str] = ()) -> AsyncIterator[Envelope]:
        return _envelopes(self._exchange.read(Edge.NOW, filters))


async def _envelopes(entries: AsyncIterator[Entry]) -> AsyncIterator[Envelope]:
    try:
        async for entry in entries:
            if entry.envelope is not None:
                yield entry.envelope
    except OutOfRange as error:
        raise ResourceExhausted(f"the subscriber did not keep up: {error}") from error


def _emit(transaction: Transaction, envelope: Envelope) -> None:
    transaction.emit(envelope.namespace, envelope.topic, envelope.event, time=envelope.timestamp)


def _sifted(events: Sequence[Numbered]) -> tuple[Sequence[Numbered], Sequence[Refused]]:
    """What can be taken, and why the rest can't.

    Raises:
        InvalidArgument: the numbers don't rise.
    """
    good, refused, last = [], [], 0
    for one in events:
        if not last < one.number <= MAX_NUMBER:
            raise InvalidArgument(f"number {one.number} of an event does not follow {last}")
        last = one.number
        try:
            _validate_envelope(one.envelope)
        except InvalidArgument as error:
            refused.append(Refused(number=one.number, reason=str(error)))
        else:
            good.append(one)
    return good, refused


def _validate_envelope(envelope: Envelope) -> None:
    validate_identifier(envelope.namespace, "namespace")
    _validate(envelope.topic, envelope.event)


def _validate(topic: str, event: TypedValue) -> None:
    if not topic.startswith("/") or topic == "/":
        raise InvalidArgument(f"topic {topic[:128]!r} must begin with '/' and name something")
    for component in topic[1:].split("/"):
        if len(component) > MAX_IDENTIFIER_LENGTH or _COMPONENT.fullmatch(component) is None:
            raise InvalidArgument(f"topic {topic[:128]!r} has the component {component[:80]!r}, which is not valid")
    if len(event.value) > MAX_PAYLOAD:
        raise InvalidArgument(f"the payload of an event of {topic[:128]} is over {MAX_PAYLOAD} bytes long")
