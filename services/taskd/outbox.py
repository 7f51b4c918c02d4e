"""The outbox: events of shims, kept on disk until metadatad has them, forwarded in the order they came.

It also knows which tasks and processes have been reported, so that the end of each process is reported exactly once:
by its shim or, where the shim can't or didn't, by us. A second report of the same end is dropped, whoever makes it.
A shim that gets no answer, because we die, tells the same event again: it is known by its moment and its bytes.

An event is sent again if we die between its arrival there and its removal here; its source and number tell that it is.
So its removal may wait for the next write: each of them waits for the disk, and a container's life has four events.
"""

import asyncio
import contextlib
import enum
import hashlib
import logging
import secrets
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from carina import context, faults
from carina.errors import CarinaError, InvalidArgument, ResourceExhausted
from carina.events import Envelope, Numbered
from carina.sqlite import Database
from carina.typed import TypedValue
from taskd.delivery import Sink

_BATCH: Final = 256
_BATCH_BYTES: Final = 1 << 20
_ROW: Final = 256
"""Bytes that an event takes beside its payload, about."""
_FORWARD_SECONDS: Final = 10.0
_TIDY_SECONDS: Final = 1.0
"""Without a new event for this long, those that have arrived are removed for their own sake."""
_RETRY_SECONDS: Final = (0.05, 5.0)
_KEPT_SECONDS: Final = 600.0
"""How long what was told is remembered after its task was deleted: shims repeat themselves for some 20 s."""

log = logging.getLogger(__name__)


class Kind(enum.Enum):
    CREATE = "create"
    START = "start"
    EXIT = "exit"
    DELETE = "delete"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What an event says about which process."""

    kind: Kind
    namespace: str = ""
    id: str = ""
    exec_id: str = ""
    pid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A process that was reported to exist, and whose end was not."""

    exec_id: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What may wait to be forwarded."""

    events: int = 100_000
    bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class _Batch:
    """The oldest events of one source, in order."""

    source: str
    events: Sequence[Numbered]


class Outbox:
    def __init__(self, database: Database, sink: Sink, *, limits: Limits | None = None) -> None:
        self._database = database
        self._sink = sink
        self._limits = limits or Limits()
        self._source = secrets.token_hex(16)
        self._more = asyncio.Event()
        self._more.set()
        self._idle = asyncio.Event()
        self._deletions: dict[tuple[str, str], list[asyncio.Event]] = {}
        self._arrived = 0
        """The number of the last event that is forwarded and still here; 0 if there is none."""

    async def record(self, envelope: Envelope, subject: Subject) -> bool:
        """Keep an event, durably; False if it repeats one, or the end of a process that was reported.

        Raises:
            ResourceExhausted: too many events wait already.
        """
        arrived = self._arrived
        recorded = await self._database.write(lambda connection: self._record(connection, envelope, subject, arrived))
        faults.point("taskd.outbox.recorded")
        self._removed(arrived)
        if subject.kind is Kind.DELETE and not subject.exec_id:
            for waiting in self._deletions.get((subject.namespace, subject.id), ()):
                waiting.set()
        if recorded:
            self._idle.clear()
            self._more.set()
        return recorded

    async def reported(self, namespace: str, id: str, exec_id: str, pid: int) -> bool:
        """Whether the end of a process has been reported."""
        query = "SELECT 1 FROM exits WHERE namespace = ? AND id = ? AND exec_id = ? AND pid = ?"
        key = (namespace, id, exec_id, pid)
        return await self._database.read(lambda connection: connection.execute(query, key).fetchone() is not None)

    async def exists(self, namespace: str, id: str) -> bool:
        """Whether a task was reported to be created, and not to be deleted."""
        query = "SELECT 1 FROM tasks WHERE namespace = ? AND id = ?"
        return await self._database.read(
            lambda connection: connection.execute(query, (namespace, id)).fetchone() is not None
        )

    async def deleted(self, namespace: str, id: str, seconds: float) -> bool:
        """Whether the task was reported to be deleted within `seconds`, if it was reported to be created at all."""
        deleted = asyncio.Event()
        waiting = self._deletions.setdefault((namespace, id), [])
        waiting.append(deleted)
        try:
            if await self.exists(namespace, id):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await deleted.wait()
                        return True
            return not await self.exists(namespace, id)
        finally:
            waiting.remove(deleted)
            if not waiting:
                self._deletions.pop((namespace, id), None)

    async def running(self, namespace: str, id: str) -> Sequence[Running]:
        """The processes of a task that have not been reported to have ended."""
        query = "SELECT exec_id, pid FROM processes WHERE namespace = ? AND id = ? ORDER BY exec_id"
        rows = await self._database.read(lambda connection: connection.execute(query, (namespace, id)).fetchall())
        return [Running(exec_id=exec_id, pid=pid) for exec_id, pid in rows]

    async def pending(self) -> int:
        """How many events wait to be forwarded."""
        query, arrived = "SELECT count(*) FROM events WHERE number > ?", self._arrived
        count: int = await self._database.read(lambda connection: connection.execute(query, (arrived,)).fetchone()[0])
        return count

    async def forward(self) -> None:
        """Forward for ever. An event that metadatad calls invalid is dropped; anything else is tried again."""
        pause = _RETRY_SECONDS[0]
        while True:
            await self._wanted()
            self._more.clear()
            batch = await self._next()
            if not batch.events:
                if not self._more.is_set():
                    self._idle.set()
                continue
            self._more.set()
            done = await self._deliver(batch.source, batch.events)
            if done:
                faults.point("taskd.outbox.forwarded")
                self._arrived = done
                if not self._sink.recognises:
                    await self._tidy()
            if done == batch.events[-1].number:
                pause = _RETRY_SECONDS[0]
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _RETRY_SECONDS[1])

    async def _next(self) -> _Batch:
        arrived = self._arrived
        return await self._database.read(lambda connection: _batch(connection, arrived))

    async def _wanted(self) -> None:
        """Wait for an event; meanwhile, remove those that have arrived once no other comes."""
        if self._arrived:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TIDY_SECONDS):
                    await self._more.wait()
                return
            await self._tidy()
        await self._more.wait()

    async def _tidy(self) -> None:
        if arrived := self._arrived:
            await self._database.write(lambda connection: _forget(connection, arrived))
            self._removed(arrived)

    def _removed(self, number: int) -> None:
        if number:
            faults.point("taskd.outbox.dropped")
        if self._arrived == number:
            self._arrived = 0

    async def _deliver(self, source: str, events: Sequence[Numbered]) -> int:
        """Returns the number of the last one that is done with; 0 if none is."""
        first, last = events[0], events[-1]
        try:
            with context.use(context.Call()), context.deadline(_FORWARD_SECONDS):
                async with asyncio.timeout(_FORWARD_SECONDS + 1):
                    refused = await self._sink.append(source, events)
        except InvalidArgument as error:
            if len(events) > 1:
                return await self._deliver_singly(source, events)
            log.error("event %d (%s) is dropped: %s", first.number, first.envelope.topic, error)
        except (CarinaError, TimeoutError) as error:
            topic, reason = first.envelope.topic, error or "no answer"
            log.warning("events from %d (%s) on can't be forwarded now: %s", first.number, topic, reason)
            return 0
        else:
            for one in refused:
                log.error("event %d is dropped: %s", one.number, one.reason)
        return last.number

    async def _deliver_singly(self, source: str, events: Sequence[Numbered]) -> int:
        done = 0
        for one in events:
            if not await self._deliver(source, [one]):
                break
            done = one.number
        return done

    async def flush(self, seconds: float) -> None:
        """Wait until everything is forwarded, or until `seconds` are over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        await self._tidy()

    def _record(self, connection: sqlite3.Connection, envelope: Envelope, subject: Subject, arrived: int) -> bool:
        _forget(connection, arrived)
        position = self._room(connection) + len(envelope.event.value) + _ROW
        if _repeats(connection, envelope, subject) or not _note(connection, subject):
            return False
        event = envelope.event
        connection.execute(
            "INSERT INTO events (source, position, timestamp, namespace, topic, type_url, value) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                *(self._source, position, envelope.timestamp.isoformat()),
                *(envelope.namespace, envelope.topic, event.type_url, event.value),
            ),
        )
        return True

    def _room(self, connection: sqlite3.Connection) -> int:
        """The position of the newest event. Raises ResourceExhausted where nothing may be added."""
        query = "SELECT number, position FROM events ORDER BY number {} LIMIT 1"
        oldest = connection.execute(query.format("ASC")).fetchone()
        if oldest is None:
            return 0
        newest = connection.execute(query.format("DESC")).fetchone()
        events, size = newest[0] - oldest[0] + 1, newest[1] - oldest[1]
        if events >= self._limits.events or size >= self._limits.bytes:
            raise ResourceExhausted(f"{events} events of {size} bytes are waiting to be forwarded already")
        position: int = newest[1]
        return position


def _forget(connection: sqlite3.Connection, number: int) -> None:
    connection.execute("DELETE FROM events WHERE number <= ?", (number,))


def _batch(connection: sqlite3.Connection, after: int) -> _Batch:
    rows = connection.execute(
        "SELECT number, source, timestamp, namespace, topic, type_url, value FROM events WHERE number > ? "
        "ORDER BY number LIMIT ?",
        (after, _BATCH),
    )
    source, size = "", 0
    events: list[Numbered] = []
    for number, origin, timestamp, namespace, topic, type_url, value in rows:
        if events and (origin != source or size + len(value) > _BATCH_BYTES):
            break
        source = origin
        size += len(value)
        moment, event = datetime.fromisoformat(timestamp), TypedValue(type_url, value)
        envelope = Envelope(timestamp=moment, namespace=namespace, topic=topic, event=event)
        events.append(Numbered(number=number, envelope=envelope))
    rows.close()
    return _Batch(source, events)


def _repeats(connection: sqlite3.Connection, envelope: Envelope, subject: Subject) -> bool:
    """Whether this very event was told before. Ends are known by their process."""
    if subject.kind is Kind.EXIT:
        return False
    parts = (envelope.namespace, envelope.topic, envelope.timestamp.isoformat())
    fingerprint = hashlib.sha256("\0".join(parts).encode() + b"\0" + envelope.event.value).digest()[:16]
    added = connection.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (fingerprint, time.time()))
    return added.rowcount == 0


def _note(connection: sqlite3.Connection, subject: Subject) -> bool:
    """Update what is known of the process; False for an end that is known already."""
    task = (subject.namespace, subject.id)
    key = (*task, subject.exec_id)
    match subject.kind:
        case Kind.CREATE:
            connection.execute("INSERT OR REPLACE INTO tasks VALUES (?, ?)", task)
            # Of an earlier task with this name: its first process can have had this number too.
            connection.execute("DELETE FROM exits WHERE namespace = ? AND id = ? AND pid = ?", (*task, subject.pid))
            connection.execute("INSERT OR REPLACE INTO processes VALUES (?, ?, ?, ?)", (*key, subject.pid))
        case Kind.START:
            connection.execute("INSERT OR REPLACE INTO processes VALUES (?, ?, ?, ?)", (*key, subject.pid))
        case Kind.EXIT:
            added = connection.execute(
                "INSERT OR IGNORE INTO exits VALUES (?, ?, ?, ?, ?)", (*key, subject.pid, time.time())
            )
            connection.execute("DELETE FROM processes WHERE namespace = ? AND id = ? AND exec_id = ?", key)
            return added.rowcount > 0
        case Kind.DELETE if not subject.exec_id:
            connection.execute("DELETE FROM tasks WHERE namespace = ? AND id = ?", task)
            connection.execute("DELETE FROM processes WHERE namespace = ? AND id = ?", task)
            connection.execute("DELETE FROM seen WHERE told < ?", (time.time() - _KEPT_SECONDS,))
            connection.execute(
                "DELETE FROM exits WHERE reported < ? AND NOT EXISTS "
                "(SELECT 1 FROM tasks WHERE tasks.namespace = exits.namespace AND tasks.id = exits.id)",
                (time.time() - _KEPT_SECONDS,),
            )
        case _:
            pass
    return True
