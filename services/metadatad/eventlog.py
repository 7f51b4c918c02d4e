"""The log of events in the database: plain functions of a connection.

Sequences have no gaps, `recorded` and `position` never fall, and the log loses events at its old end alone;
so every search is one by halves over the primary key, and trimming is one deletion of a range.
"""

import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from carina.events import Envelope
from carina.sqlite import from_time, now, to_time
from carina.typed import TypedValue

TRIM_EVERY: Final = 512
"""Events between two looks at the length of the log."""
TRIM_AT_ONCE: Final = 8 * TRIM_EVERY
"""Events removed in one transaction at the most, where the limits have been lowered."""
SOURCES: Final = 64
"""Sources that are remembered."""
_ROW: Final = 256
"""Bytes that an event takes beside its payload, about."""
_PAGE: Final = 4096
_RECORDED: Final = 0
_POSITION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the log keeps. It is longer by what comes between two looks at it."""

    events: int = 100_000
    bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Logged:
    """An event with its place."""

    sequence: int
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Epoch:
    """A part of the log's history."""

    first: int
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What the log holds. `oldest` is `newest + 1` where it holds nothing."""

    oldest: int
    newest: int
    since: int | None
    bytes: int


def size(value: bytes) -> int:
    """About what an event takes on the disk: a large payload has pages of its own."""
    return _ROW + (len(value) if len(value) < _PAGE - _ROW else -(-len(value) // _PAGE) * _PAGE)


def append(
    connection: sqlite3.Connection,
    limits: Limits,
    *,
    time: datetime | None,
    namespace: str,
    topic: str,
    event: TypedValue,
) -> Logged:
    """Write an event, and now and then remove what is beyond the limits."""
    last = connection.execute("SELECT recorded, position FROM events ORDER BY sequence DESC LIMIT 1").fetchone()
    before, position = last or (0, 0)
    moment = now()
    happened = moment if time is None else from_time(time)
    added = position + size(event.value)
    cursor = connection.execute(
        "INSERT INTO events (recorded, position, time, namespace, topic, type_url, value) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (max(moment, before), added, happened, namespace, topic, event.type_url, event.value),
    )
    sequence = cursor.lastrowid or 0
    step = limits.bytes // 16 or 1
    if sequence % TRIM_EVERY == 0 or added // step != position // step:
        _trim(connection, limits, newest=sequence, position=added)
    envelope = Envelope(timestamp=to_time(happened), namespace=namespace, topic=topic, event=event)
    return Logged(sequence, envelope)


def _trim(connection: sqlite3.Connection, limits: Limits, *, newest: int, position: int) -> None:
    """The newest event always stays: the next one's position follows from it."""
    (oldest,) = connection.execute("SELECT min(sequence) FROM events").fetchone()
    by_bytes = _first(connection, _POSITION, position - limits.bytes + 1, oldest, newest)
    keep = min(max(newest - limits.events + 1, by_bytes), newest, oldest + TRIM_AT_ONCE)
    if keep > oldest:
        connection.execute("DELETE FROM events WHERE sequence < ?", (keep,))
        # An epoch goes when no reader can be in it: the place before the oldest event is one that is not lost.
        connection.execute(
            "DELETE FROM epochs WHERE first < (SELECT max(first) FROM epochs WHERE first <= ?)", (keep - 1,)
        )


def _first(connection: sqlite3.Connection, column: int, least: int, low: int, high: int) -> int:
    """The first of low..high whose `recorded` or `position` is at least `least`; high + 1 where there is none."""
    high += 1
    while low < high:
        middle = (low + high) // 2
        row = connection.execute("SELECT recorded, position FROM events WHERE sequence = ?", (middle,)).fetchone()
        if row[column] < least:
            low = middle + 1
        else:
            high = middle
    return low


def begin(connection: sqlite3.Connection) -> None:
    """Begin an epoch, as every start of the service does. One in which nothing happened is replaced."""
    first = extent(connection).newest + 1
    connection.execute("INSERT OR REPLACE INTO epochs VALUES (?, ?)", (first, secrets.token_hex(8)))


def epochs(connection: sqlite3.Connection) -> list[Epoch]:
    """In order; the last one goes on."""
    return [Epoch(*row) for row in connection.execute("SELECT first, id FROM epochs ORDER BY first")]


def extent(connection: sqlite3.Connection) -> Extent:
    query = "SELECT sequence, recorded, position, length(value) FROM events ORDER BY sequence {} LIMIT 1"
    oldest = connection.execute(query.format("ASC")).fetchone()
    newest = connection.execute(query.format("DESC")).fetchone()
    if oldest is None:
        last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
        number = last[0] if last else 0
        return Extent(oldest=number + 1, newest=number, since=None, bytes=0)
    taken = newest[2] - oldest[2] + _ROW + oldest[3]
    return Extent(oldest=oldest[0], newest=newest[0], since=oldest[1], bytes=taken)


def since(connection: sqlite3.Connection, moment: datetime) -> tuple[int, Extent]:
    """The first event recorded at that moment or later, or the one that is to come; and what the log holds."""
    found = extent(connection)
    return _first(connection, _RECORDED, from_time(moment), found.oldest, found.newest), found


def after(connection: sqlite3.Connection, sequence: int, *, events: int, size: int) -> list[Logged]:
    """Events after that one, at least one if there is any, at the most as many and about as large as said."""
    rows = connection.execute(
        "SELECT sequence, time, namespace, topic, type_url, value FROM events WHERE sequence > ? ORDER BY sequence "
        "LIMIT ?",
        (sequence, events),
    )
    found: list[Logged] = []
    taken = 0
    for number, time, namespace, topic, type_url, value in rows:
        event = TypedValue(type_url, value)
        found.append(Logged(number, Envelope(timestamp=to_time(time), namespace=namespace, topic=topic, event=event)))
        taken += len(value)
        if taken >= size:
            break
    rows.close()
    return found


def taken(connection: sqlite3.Connection, source: str) -> int:
    """The highest number taken from a source; 0 if it is not known."""
    row = connection.execute("SELECT number FROM sources WHERE source = ?", (source,)).fetchone()
    return row[0] if row else 0


def take(connection: sqlite3.Connection, source: str, number: int) -> None:
    """Note the highest number taken from a source, and forget sources that were not heard of for longest."""
    known = connection.execute("SELECT 1 FROM sources WHERE source = ?", (source,)).fetchone()
    connection.execute(
        "INSERT OR REPLACE INTO sources VALUES (?, ?, (SELECT coalesce(max(sequence), 0) FROM events))",
        (source, number),
    )
    if known is None:
        connection.execute(
            "DELETE FROM sources WHERE source != ? AND source NOT IN "
            "(SELECT source FROM sources ORDER BY sequence DESC LIMIT ?)",
            (source, SOURCES),
        )


def of(history: Sequence[Epoch], sequence: int) -> Epoch:
    """The epoch that a place belongs to."""
    for epoch in reversed(history):
        if epoch.first <= sequence:
            return epoch
    return history[0]
