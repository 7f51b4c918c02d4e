"""The outbox: events of shims, kept on disk until metadatad has them, forwarded in the order they came.

It also knows which tasks and processes have been reported, so that the end of each process is reported exactly once:
by its shim or, where the shim can't or didn't, by us. A second report of the same end is dropped, whoever makes it.

An event is forwarded again if we die between its forwarding and its removal.
"""

import asyncio
import contextlib
import enum
import logging
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from carina import context, faults
from carina.errors import CarinaError, InvalidArgument, ResourceExhausted
from carina.events import Envelope
from carina.sqlite import Database
from carina.typed import TypedValue

MAX_EVENTS: Final = 100_000
_BATCH: Final = 64
_FORWARD_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = (0.05, 5.0)
_KEPT_SECONDS: Final = 600.0
"""How long the end of a process is remembered after its task was deleted: shims repeat themselves for some 20 s."""

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


class Sink(Protocol):
    """Where events go: the part of `carina.events.EventService` that is needed here."""

    async def forward(self, envelope: Envelope) -> None: ...


class Outbox:
    def __init__(self, database: Database, sink: Sink) -> None:
        self._database = database
        self._sink = sink
        self._more = asyncio.Event()
        self._more.set()
        self._idle = asyncio.Event()

    async def record(self, envelope: Envelope, subject: Subject) -> bool:
        """Keep an event, durably; False if it repeats the end of a process that was reported.

        Raises:
            ResourceExhausted: too many events wait already.
        """
        recorded = await self._database.write(lambda connection: _record(connection, envelope, subject))
        faults.point("taskd.outbox.recorded")
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

    async def running(self, namespace: str, id: str) -> Sequence[Running]:
        """The processes of a task that have not been reported to have ended."""
        query = "SELECT exec_id, pid FROM processes WHERE namespace = ? AND id = ? ORDER BY exec_id"
        rows = await self._database.read(lambda connection: connection.execute(query, (namespace, id)).fetchall())
        return [Running(exec_id=exec_id, pid=pid) for exec_id, pid in rows]

    async def pending(self) -> int:
        """How many events wait to be forwarded."""
        count: int = await self._database.read(
            lambda connection: connection.execute("SELECT count(*) FROM events").fetchone()[0]
        )
        return count

    async def forward(self) -> None:
        """Forward for ever. An event that metadatad calls invalid is dropped; anything else is tried again."""
        pause = _RETRY_SECONDS[0]
        while True:
            await self._more.wait()
            self._more.clear()
            batch = await self._database.read(_batch)
            if not batch:
                if not self._more.is_set():
                    self._idle.set()
                continue
            self._more.set()
            done = await self._deliver(batch)
            faults.point("taskd.outbox.forwarded")
            if done:
                last = batch[done - 1][0]
                await self._database.write(
                    lambda connection, last=last: connection.execute("DELETE FROM events WHERE number <= ?", (last,))  # type: ignore[misc]
                )
                faults.point("taskd.outbox.dropped")
            if done == len(batch):
                pause = _RETRY_SECONDS[0]
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _RETRY_SECONDS[1])

    async def _deliver(self, batch: Sequence[tuple[int, Envelope]]) -> int:
        """Returns how many are done with."""
        for index, (number, envelope) in enumerate(batch):
            try:
                with context.use(context.Call()), context.deadline(_FORWARD_SECONDS):
                    async with asyncio.timeout(_FORWARD_SECONDS + 1):
                        await self._sink.forward(envelope)
            except InvalidArgument as error:
                log.error("event %d (%s) is dropped: %s", number, envelope.topic, error)
            except (CarinaError, TimeoutError) as error:
                log.warning("event %d (%s) can't be forwarded now: %s", number, envelope.topic, error or "no answer")
                return index
        return len(batch)

    async def flush(self, seconds: float) -> None:
        """Wait until everything is forwarded, or until `seconds` are over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()


def _batch(connection: sqlite3.Connection) -> list[tuple[int, Envelope]]:
    rows = connection.execute(
        "SELECT number, timestamp, namespace, topic, type_url, value FROM events ORDER BY number LIMIT ?", (_BATCH,)
    ).fetchall()
    return [
        (
            number,
            Envelope(
                timestamp=datetime.fromisoformat(timestamp),
                namespace=namespace,
                topic=topic,
                event=TypedValue(type_url, value),
            ),
        )
        for number, timestamp, namespace, topic, type_url, value in rows
    ]


def _record(connection: sqlite3.Connection, envelope: Envelope, subject: Subject) -> bool:
    (count,) = connection.execute("SELECT coalesce(max(number) - min(number) + 1, 0) FROM events").fetchone()
    if count >= MAX_EVENTS:
        raise ResourceExhausted(f"{MAX_EVENTS} events are waiting to be forwarded already")
    if not _note(connection, subject):
        return False
    connection.execute(
        "INSERT INTO events (timestamp, namespace, topic, type_url, value) VALUES (?, ?, ?, ?, ?)",
        (
            envelope.timestamp.isoformat(),
            envelope.namespace,
            envelope.topic,
            envelope.event.type_url,
            envelope.event.value,
        ),
    )
    return True


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
            connection.execute(
                "DELETE FROM exits WHERE reported < ? AND NOT EXISTS "
                "(SELECT 1 FROM tasks WHERE tasks.namespace = exits.namespace AND tasks.id = exits.id)",
                (time.time() - _KEPT_SECONDS,),
            )
        case _:
            pass
    return True
