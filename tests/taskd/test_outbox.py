"""Events on their way from taskd to metadatad: each arrives once and in order, whoever is killed when."""

import asyncio
import contextlib
import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from carina import context
from carina.aio.threads import in_thread
from carina.errors import CarinaError, InvalidArgument, ResourceExhausted, Unavailable, Unimplemented
from carina.events import Edge, Envelope, Numbered, Refused
from carina.events.client import RemoteEventLog
from carina.rpc.client import connect
from carina.sqlite import open_database
from carina.sqlite.migrations import migrations
from carina.typed import TypedValue
from taskd.delivery import Delivery
from taskd.outbox import Kind, Limits, Outbox, Subject
from taskd.rpc import forward_event

OTHER = Subject(kind=Kind.OTHER)
SEAMS = (
    ("taskd", "taskd.outbox.recorded:5"),
    ("taskd", "taskd.outbox.forwarded:3"),
    ("taskd", "taskd.outbox.dropped:3"),
    ("metadatad", "metadatad.events.appended:3"),
)
"""Who is killed, and where."""


def envelope(topic: str, *, size: int = 3) -> Envelope:
    event = TypedValue("example.Event", bytes(size))
    return Envelope(timestamp=datetime.now(UTC), namespace="test", topic=topic, event=event)


class Daemons:
    """metadatad and taskd, as processes."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self._directory = directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    async def start(self, name: str, *, fault: str = "") -> None:
        paths = ["--root", str(self._directory / "root"), "--state", str(self.state)]
        with (self._directory / "log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", name, *paths],
                env={**os.environ, "CARINA_FAULT": fault},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def kill(self, name: str) -> None:
        self._processes[name].kill()
        await self.died(name)

    async def died(self, name: str) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                while self._processes[name].poll() is None:
                    await asyncio.sleep(0.01)
        assert self._processes[name].returncode == -9, (self._directory / "log").read_text()

    def stop(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def daemons() -> Iterator[Daemons]:
    directory = Path(tempfile.mkdtemp(prefix="outbox-", dir="/tmp"))
    (directory / "state").mkdir()
    made = Daemons(directory)
    yield made
    made.stop()
    shutil.rmtree(directory)


async def _publish(daemons: Daemons, attempts: Iterator[int], taken: list[str]) -> None:
    """Publish as a shim does: what is not answered is published again, under another name."""
    while True:
        topic = f"/n/{next(attempts)}"
        try:
            with context.deadline(10):
                await forward_event(f"{daemons.state}/carina.sock.ttrpc", envelope(topic))
        except (CarinaError, OSError):
            await asyncio.sleep(0.02)
        else:
            taken.append(topic)


async def _arrived(daemons: Daemons, last: str) -> Sequence[str]:
    """The topics in metadatad's log, once the last is there."""
    channel = connect(f"unix://{daemons.state}/metadatad.sock")
    found: list[str] = []
    try:
        async with asyncio.timeout(30):
            while last not in found:
                with contextlib.suppress(Unavailable):  # it is still starting
                    entries = [entry async for entry in RemoteEventLog(channel).read(Edge.OLDEST, follow=False)]
                    found = [entry.envelope.topic for entry in entries if entry.envelope is not None]
                await asyncio.sleep(0.05)
    finally:
        channel.close()
    return found


async def _killed_at_every_seam(daemons: Daemons) -> tuple[Sequence[str], Sequence[str]]:
    """What taskd accepted, and what arrived."""
    taken: list[str] = []
    await daemons.start("metadatad")
    await daemons.start("taskd")
    publisher = asyncio.create_task(_publish(daemons, itertools.count(), taken))
    for name, fault in SEAMS:
        await daemons.kill(name)
        await daemons.start(name, fault=fault)
        await daemons.died(name)
        await daemons.start(name)
    enough = len(taken) + 20
    async with asyncio.timeout(30):
        while len(taken) < enough:
            await asyncio.sleep(0.01)
    publisher.cancel()
    return taken, await _arrived(daemons, taken[-1])


def test_each_arrives_once_whoever_is_killed(daemons: Daemons) -> None:
    """Whatever taskd has accepted is in the log of events once and in order, after either was killed at each seam."""
    taken, arrived = asyncio.run(_killed_at_every_seam(daemons))

    assert len(set(arrived)) == len(arrived)
    assert [topic for topic in arrived if topic in set(taken)] == taken


class Sink:
    """A log, or a service without one. Fails as it is told to; then as if the answer had been lost."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.seen: list[str] = []
        self.failures: list[CarinaError] = []
        self.recognises = True

    async def append(self, source: str, events: Sequence[Numbered]) -> Sequence[Refused]:
        self.calls.append((source, [one.number for one in events]))
        self._fail()
        bad = [one.number for one in events if one.envelope.topic == "/bad"]
        self.seen += [one.envelope.topic for one in events if one.number not in bad]
        return [Refused(number=number, reason="it is bad") for number in bad]

    async def forward(self, envelope: Envelope) -> None:
        self._fail()
        if envelope.topic == "/bad":
            raise InvalidArgument("it is bad")
        self.seen.append(envelope.topic)

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)


@contextlib.asynccontextmanager
async def opened(directory: Path, sink: Sink | Delivery, **limits: int) -> AsyncIterator[Outbox]:
    schema = await in_thread(migrations, "taskd")
    async with open_database(directory / "outbox.db", schema) as database:
        yield Outbox(database, sink, limits=Limits(**limits))


async def forwarded(outbox: Outbox) -> None:
    """Forward until nothing waits, and is kept no more."""
    await delivered(outbox)
    await outbox.flush(0.01)


async def delivered(outbox: Outbox) -> None:
    """Forward until nothing waits."""
    async with asyncio.TaskGroup() as group:
        forwarding = group.create_task(outbox.forward())
        async with asyncio.timeout(30):
            while await outbox.pending():
                await asyncio.sleep(0.005)
        forwarding.cancel()


async def test_what_has_arrived_is_removed_by_the_next_write_or_soon(tmp_path: Path) -> None:
    """An event that has arrived needs no write of its own while others come, and does not stay when none comes."""
    sink = Sink()
    async with opened(tmp_path, sink) as outbox:
        await outbox.record(envelope("/a"), OTHER)
        await delivered(outbox)
        await outbox.record(envelope("/b"), OTHER)
        await delivered(outbox)
        kept = await _rows(tmp_path)
        async with asyncio.TaskGroup() as group:
            forwarding = group.create_task(outbox.forward())
            async with asyncio.timeout(30):
                while await _rows(tmp_path):
                    await asyncio.sleep(0.05)
            forwarding.cancel()

        assert kept == ["/b"]
    assert sink.seen == ["/a", "/b"]


async def _rows(directory: Path) -> list[str]:
    def read() -> list[str]:
        with contextlib.closing(sqlite3.connect(directory / "outbox.db")) as connection:
            return [topic for (topic,) in connection.execute("SELECT topic FROM events ORDER BY number")]

    return await in_thread(read)


async def test_a_deletion_can_be_waited_for(tmp_path: Path) -> None:
    """Whoever ends a shim waits for what it has to tell of a task, unless nothing was ever told of it."""
    created = Subject(kind=Kind.CREATE, namespace="n", id="a", pid=1)
    deleted = Subject(kind=Kind.DELETE, namespace="n", id="a", pid=1)
    async with opened(tmp_path, Sink()) as outbox:
        assert await outbox.deleted("n", "a", 0.0)
        await outbox.record(envelope("/tasks/create"), created)
        assert not await outbox.deleted("n", "a", 0.05)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(outbox.deleted("n", "a", 30.0))
            await asyncio.sleep(0.05)
            await outbox.record(envelope("/tasks/delete"), deleted)
        assert waiting.result()


async def test_what_is_sent_again_has_the_same_numbers(tmp_path: Path) -> None:
    """What goes out again has the same source and numbers; what is new after a restart has another source."""
    sink = Sink()
    async with opened(tmp_path, sink) as outbox:
        await outbox.record(envelope("/a"), OTHER)
        await outbox.record(envelope("/b"), OTHER)
    sink.failures = [Unavailable("away")]
    async with opened(tmp_path, sink) as outbox:
        await outbox.record(envelope("/c"), OTHER)
        await forwarded(outbox)

    assert sink.seen == ["/a", "/b", "/c"]
    assert sink.calls[0] == sink.calls[1]
    assert [numbers for _, numbers in sink.calls] == [[1, 2], [1, 2], [3]]
    assert sink.calls[1][0] != sink.calls[2][0]


async def test_what_can_not_be_taken_is_dropped(tmp_path: Path) -> None:
    """An event that metadatad refuses holds up no other, whether it is named or the whole batch is refused."""
    sink = Sink()
    for failures in ([], [InvalidArgument("none of them"), InvalidArgument("the first")]):
        sink.failures = [*failures]
        async with opened(tmp_path, sink) as outbox:
            for topic in ("/a", "/bad", "/b"):
                await outbox.record(envelope(topic), OTHER)
            await forwarded(outbox)
    assert sink.seen == ["/a", "/b", "/b"]


@pytest.mark.parametrize(("limits", "held"), [({"events": 3}, 3), ({"bytes": 10_000}, 3)])
async def test_what_waits_is_bounded(tmp_path: Path, limits: dict[str, int], held: int) -> None:
    """When too many events wait, or too many bytes, no more are taken until some are forwarded."""
    sink = Sink()
    async with opened(tmp_path, sink, **limits) as outbox:
        for i in range(held):
            await outbox.record(envelope(f"/n/{i}", size=5000), OTHER)
        with pytest.raises(ResourceExhausted, match=f"{held} events"):
            await outbox.record(envelope("/more"), OTHER)
        await forwarded(outbox)
        assert await outbox.record(envelope("/more"), OTHER)
        await forwarded(outbox)
    assert sink.seen == ["/n/0", "/n/1", "/n/2", "/more"]


async def test_a_batch_is_bounded(tmp_path: Path) -> None:
    """Large events are sent a few at a time."""
    sink = Sink()
    async with opened(tmp_path, sink) as outbox:
        for i in range(5):
            await outbox.record(envelope(f"/n/{i}", size=400_000), OTHER)
        await forwarded(outbox)
    assert [numbers for _, numbers in sink.calls] == [[1, 2], [3, 4], [5]]


async def test_service_without_a_log(tmp_path: Path) -> None:
    """A service that knows containerd's API alone gets each event once, also where one in the middle fails at first."""
    sink = Sink()
    sink.failures = [Unimplemented("no log")]
    async with opened(tmp_path, Delivery(sink, sink)) as outbox:
        await outbox.record(envelope("/first"), OTHER)
        await forwarded(outbox)
        for topic in ("/a", "/bad", "/b"):
            await outbox.record(envelope(topic), OTHER)
        sink.failures = [Unavailable("away")]
        await forwarded(outbox)
    assert sink.seen == ["/first", "/a", "/b"]
    assert len(sink.calls) == 1


async def test_outbox_of_an_earlier_version(tmp_path: Path) -> None:
    """Events that waited when taskd was replaced by a newer version are forwarded."""
    schema = await in_thread(migrations, "taskd")
    insert = "INSERT INTO events (timestamp, namespace, topic, type_url, value) VALUES (?, 'test', '/old', 'x', x'00')"
    async with open_database(tmp_path / "outbox.db", schema[:1]) as database:
        await database.write(lambda connection: connection.execute(insert, (datetime.now(UTC).isoformat(),)))
    sink = Sink()
    async with opened(tmp_path, sink) as outbox:
        await outbox.record(envelope("/new"), OTHER)
        await forwarded(outbox)
    assert sink.seen == ["/old", "/new"]


async def test_what_a_shim_tells_again_is_taken_once(tmp_path: Path) -> None:
    """A shim whose call was cut off, because taskd died after it had kept the event, tells the same event again."""
    sink = Sink()
    created = envelope("/tasks/create")
    told = Subject(kind=Kind.CREATE, namespace="test", id="c", pid=7)
    async with opened(tmp_path, sink) as outbox:
        assert await outbox.record(created, told)
    async with opened(tmp_path, sink) as outbox:
        assert not await outbox.record(created, told)
        assert await outbox.record(envelope("/tasks/create"), told)
        await forwarded(outbox)
    assert sink.seen == ["/tasks/create", "/tasks/create"]
