"""The event exchange: readers of the log, each with a place in it and nothing else.

The newest events are remembered once, for all readers; one that is further behind reads the log itself.
So a reader that is slow, or does not read at all, takes no memory and holds up nobody: in the end the log loses the
event that it needs next, and it is told so.
What is committed is delivered here in the order of the log, before the change is answered.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Final

from carina.errors import FailedPrecondition, OutOfRange, Unavailable
from carina.events import Cursor, Edge, Entry, Envelope, Start
from carina.events.fields import Payload, fields
from carina.filters import Adaptor, matcher
from carina.sqlite import Database, to_time
from metadatad import eventlog
from metadatad.eventlog import Epoch, Logged

REMEMBERED: Final = 4096
"""Events kept in memory."""
REMEMBERED_BYTES: Final = 8 << 20
"""What their payloads take there, together."""
BATCH: Final = 256
"""Events that a reader takes at once."""
BATCH_BYTES: Final = 1 << 20
MARK_EVERY: Final = 1024
"""Events that match nothing, after which a reader is told how far it is."""


async def open_exchange(database: Database, payload: Payload) -> "Exchange":
    """Begin an epoch of the log and serve it. `payload` reads fields of events for filters."""

    def begin(connection: object) -> tuple[list[Epoch], int]:
        eventlog.begin(connection)  # type: ignore[arg-type]
        return eventlog.epochs(connection), eventlog.extent(connection).newest  # type: ignore[arg-type]

    history, newest = await database.write(begin)
    return Exchange(database, payload, history=history, newest=newest)


class Exchange:
    def __init__(self, database: Database, payload: Payload, *, history: Sequence[Epoch], newest: int) -> None:
        self._database = database
        self._payload = payload
        self._history = history
        self._newest = newest
        self._recent: dict[int, Envelope] = {}
        self._recent_bytes = 0
        self._oldest_recent = newest + 1
        self._arrived = asyncio.Event()
        self._closed = False

    @property
    def newest(self) -> Cursor:
        """The place of the newest event that was delivered."""
        return self._cursor(self._newest)

    def close(self) -> None:
        """End every reader that has everything, with Unavailable: the client is to come back."""
        self._closed = True
        self._wake()

    def deliver(self, logged: Sequence[Logged]) -> None:
        """Make events visible. Called on the loop, in the order of commits."""
        for one in logged:
            self._recent[one.sequence] = one.envelope
            self._recent_bytes += len(one.envelope.event.value)
        self._newest = logged[-1].sequence
        while len(self._recent) > REMEMBERED or (self._recent_bytes > REMEMBERED_BYTES and len(self._recent) > 1):
            gone = self._recent.pop(self._oldest_recent)
            self._recent_bytes -= len(gone.event.value)
            self._oldest_recent += 1
        self._wake()

    def _wake(self) -> None:
        arrived, self._arrived = self._arrived, asyncio.Event()
        arrived.set()

    def read(
        self, start: Start = Edge.NOW, filters: Sequence[str] = (), *, follow: bool = True, gaps: bool = False
    ) -> AsyncIterator[Entry]:
        """See `carina.events.EventLog`. `Edge.NOW` is the moment of this call, not that of the first iteration."""
        if self._closed:
            raise Unavailable("the event service is stopping")
        matches = matcher(filters, self._fields)
        if start is Edge.NOW:
            start = self.newest
        return self._read(start, matches, end=None if follow else self._newest, gaps=gaps)

    def _fields(self, envelope: Envelope) -> Adaptor:
        return fields(envelope, self._payload)

    async def _read(
        self, start: Start, matches: Callable[[Envelope], bool], *, end: int | None, gaps: bool
    ) -> AsyncIterator[Entry]:
        place, lost = await self._begin(start, gaps=gaps)
        yield Entry(cursor=self._cursor(place), lost=lost)
        told = place
        while end is None or place < end:
            batch = await self._after(place)
            if batch[0].sequence != place + 1:
                if not gaps:
                    raise _lost(place, batch[0].sequence)
                told = batch[0].sequence - 1
                yield Entry(cursor=self._cursor(told), lost=True)
            for one in batch:
                if end is not None and one.sequence > end:
                    break
                place = one.sequence
                if matches(one.envelope):
                    told = place
                    yield Entry(cursor=self._cursor(place), envelope=one.envelope)
            if place - told >= MARK_EVERY or (place == end and place != told):
                told = place
                yield Entry(cursor=self._cursor(place))

    async def _after(self, place: int) -> list[Logged]:
        """Events after a place, as soon as there are any."""
        while place >= self._newest:
            if self._closed:
                raise Unavailable("the event service is stopping")
            await self._arrived.wait()
        if place + 1 >= self._oldest_recent:
            return self._remembered(place + 1)
        # What has been committed but not yet delivered may be among these; delivering it then changes nothing.
        return await self._database.read(
            lambda connection: eventlog.after(connection, place, events=BATCH, size=BATCH_BYTES)
        )

    def _remembered(self, first: int) -> list[Logged]:
        recent = self._recent
        return [Logged(sequence, recent[sequence]) for sequence in range(first, min(first + BATCH, self._newest + 1))]

    async def _begin(self, start: Start, *, gaps: bool) -> tuple[int, bool]:
        """The place before the first event to read, and whether events that were asked for are missing there."""
        if isinstance(start, Cursor):
            return await self._from_cursor(start, gaps=gaps)
        if start is Edge.OLDEST:
            return (await self._database.read(eventlog.extent)).oldest - 1, False
        assert isinstance(start, datetime)
        moment = start
        first, found = await self._database.read(lambda connection: eventlog.since(connection, moment))
        lost = first == found.oldest > 1 and (found.since is None or to_time(found.since) > moment)
        if lost and not gaps:
            oldest = "nothing" if found.since is None else f"event {first}, of {to_time(found.since).isoformat()}"
            raise OutOfRange(f"events since {moment.isoformat()} are not all kept: the oldest is {oldest}")
        return first - 1, lost

    async def _from_cursor(self, cursor: Cursor, *, gaps: bool) -> tuple[int, bool]:
        oldest = (await self._database.read(eventlog.extent)).oldest
        known = any(epoch.id == cursor.log for epoch in self._history)
        if cursor.log and (known or cursor.sequence + 1 >= oldest) and self._cursor(cursor.sequence) != cursor:
            raise FailedPrecondition(
                f"cursor {cursor} is not of this log, whose newest event is {self.newest}: "
                "the database is another one, or was put back to an earlier state"
            )
        if cursor.sequence > self._newest:
            raise OutOfRange(f"event {cursor.sequence} has not come yet: the newest event is {self._newest}")
        if cursor.sequence + 1 >= oldest:
            return cursor.sequence, False
        if not gaps:
            raise _lost(cursor.sequence, oldest)
        return oldest - 1, True

    def _cursor(self, sequence: int) -> Cursor:
        return Cursor(log=eventlog.of(self._history, sequence).id, sequence=sequence)


def _lost(place: int, oldest: int) -> OutOfRange:
    return OutOfRange(
        f"the events after {place} are not all kept any more: {place + 1} was asked for, and the oldest is {oldest}"
    )
