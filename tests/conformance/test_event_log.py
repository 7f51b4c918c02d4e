"""What every log of events promises, direct and over a socket."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from carina import context
from carina.aio.threads import in_thread
from carina.errors import FailedPrecondition, InvalidArgument, OutOfRange, Unavailable
from carina.events import Cursor, Edge, Entry, Envelope, Numbered, Start
from carina.events.client import RemoteEventLog
from carina.events.follow import follow
from carina.events.server import LogService
from carina.rpc.client import connect
from carina.rpc.server import serve
from carina.sqlite import open_database
from carina.sqlite.migrations import migrations
from carina.typed import TypedValue
from metadatad.eventlog import TRIM_EVERY, Limits
from support.metadata import Stores, stores

PAYLOAD = TypedValue("example.Event", b"\x01\x02\x03")
MOMENT = datetime(2020, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


@pytest.fixture(params=["local", "socket"])
async def metadata(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    async with stores(tmp_path, request.param) as opened:
        yield opened


def numbered(first: int, last: int, *, size: int = 3) -> Sequence[Numbered]:
    """Events `/n/<number>`."""
    event = TypedValue("example.Event", bytes(size))
    return [
        Numbered(number=i, envelope=Envelope(timestamp=MOMENT, namespace="test", topic=f"/n/{i}", event=event))
        for i in range(first, last + 1)
    ]


async def entries(
    metadata: Stores, start: Start, count: int | None = None, *, filters: Sequence[str] = (), gaps: bool = False
) -> Sequence[Entry]:
    """The first entries, or all that are there now."""
    found: list[Entry] = []
    async with asyncio.timeout(30):
        async for entry in metadata.log.read(start, filters, follow=count is not None, gaps=gaps):
            found.append(entry)
            if len(found) == count:
                break
    return found


async def topics(metadata: Stores, start: Start, *, gaps: bool = False) -> Sequence[str]:
    found = await entries(metadata, start, gaps=gaps)
    return [entry.envelope.topic for entry in found if entry.envelope is not None]


@contextlib.asynccontextmanager
async def serving(directory: Path, metadata: Stores) -> AsyncIterator[None]:
    handlers = [LogService(metadata.log)]
    async with serve(f"unix://{directory / 'metadatad.sock'}", handlers, name="metadatad", grace=0.1):
        yield


async def test_an_entry_is_the_event_with_its_place(metadata: Stores) -> None:
    """Reading begins with a place, then comes each event as it was appended, numbered without gaps."""
    await metadata.log.append("test", numbered(1, 2))
    begin, *found = await entries(metadata, Edge.OLDEST, 3)

    assert (begin.envelope, begin.cursor.sequence) == (None, 0)
    assert [entry.envelope for entry in found] == [one.envelope for one in numbered(1, 2)]
    assert [entry.cursor.sequence for entry in found] == [1, 2]


async def test_reading_goes_on_after_a_cursor(metadata: Stores) -> None:
    """A reader that comes back with the place of any entry gets exactly the events after it."""
    await metadata.log.append("test", numbered(1, 300))
    for entry in await entries(metadata, Edge.OLDEST):
        if entry.cursor.sequence % 50 == 0:
            rest = [f"/n/{i}" for i in range(entry.cursor.sequence + 1, 301)]
            assert await topics(metadata, entry.cursor) == rest


async def test_a_place_without_an_event_is_one_to_go_on_from(metadata: Stores) -> None:
    """Who asks for what is new and loses the connection before anything happened misses nothing."""
    await metadata.log.append("test", numbered(1, 2))
    (begin,) = await entries(metadata, Edge.NOW, 1)
    await metadata.log.append("test", numbered(3, 4))
    assert await topics(metadata, begin.cursor) == ["/n/3", "/n/4"]


async def test_without_following_it_ends_with_what_is_there(metadata: Stores) -> None:
    """A reading that does not follow ends by itself, and tells how far it looked where nothing matched."""
    await metadata.log.append("test", numbered(1, 3))
    found = await entries(metadata, Edge.OLDEST, filters=['topic=="/n/2"'])
    assert [entry.cursor.sequence for entry in found] == [0, 2, 3]
    assert [entry.envelope is None for entry in found] == [True, False, True]


async def test_who_waits_for_what_is_rare_stays_within_the_log(metadata: Stores) -> None:
    """A reader whose filters match nothing is told of places all the same."""
    await metadata.log.append("test", numbered(1, 3000))
    found = await entries(metadata, Edge.OLDEST, 3, filters=['topic=="/never"'])
    assert [entry.envelope for entry in found] == [None] * 3
    assert found[0].cursor.sequence < found[1].cursor.sequence < found[2].cursor.sequence <= 3000


async def test_reading_from_a_moment(metadata: Stores) -> None:
    """A moment means when an event came, not the time that it tells."""
    await metadata.log.append("test", numbered(1, 5))
    await asyncio.sleep(0.002)
    moment = datetime.now(UTC)
    await asyncio.sleep(0.002)
    await metadata.log.append("test", numbered(6, 9))

    assert await topics(metadata, moment) == [f"/n/{i}" for i in range(6, 10)]
    assert await topics(metadata, moment + timedelta(days=1)) == []
    assert await topics(metadata, moment - timedelta(days=1)) == [f"/n/{i}" for i in range(1, 10)]


async def test_source_that_repeats_itself(metadata: Stores) -> None:
    """Events of a source are taken once and in order, whatever is sent again; sources are told apart."""
    await metadata.log.append("one", numbered(1, 5))
    await metadata.log.append("one", numbered(3, 7))
    await metadata.log.append("one", numbered(1, 7))
    await metadata.log.append("two", numbered(1, 2))
    assert await topics(metadata, Edge.OLDEST) == [f"/n/{i}" for i in (*range(1, 8), 1, 2)]


async def test_what_can_never_be_taken_is_named(metadata: Stores) -> None:
    """An event that is not valid is refused with its reason; those around it are taken."""
    bad = Envelope(timestamp=MOMENT, namespace="test", topic="none", event=PAYLOAD)
    first, last = numbered(1, 1)[0], numbered(3, 3)[0]
    (refused,) = await metadata.log.append("test", [first, Numbered(number=2, envelope=bad), last])
    assert refused.number == 2
    assert "'none'" in refused.reason
    assert await topics(metadata, Edge.OLDEST) == ["/n/1", "/n/3"]


async def test_numbers_must_rise(metadata: Stores) -> None:
    """A source that does not count is refused as a whole."""
    with pytest.raises(InvalidArgument, match="number 1"):
        await metadata.log.append("test", [*numbered(2, 2), *numbered(1, 1)])
    with pytest.raises(InvalidArgument, match="source"):
        await metadata.log.append("", numbered(1, 1))


async def test_cursor_that_can_not_be(metadata: Stores) -> None:
    """A cursor ahead of the log, or of another one, is refused."""
    await metadata.log.append("test", numbered(1, 5))
    with pytest.raises(OutOfRange, match="event 6 has not come yet: the newest event is 5"):
        await entries(metadata, Cursor(sequence=6))
    with pytest.raises(FailedPrecondition, match="is not of this log"):
        await entries(metadata, Cursor(log="0123456789abcdef", sequence=5))
    with pytest.raises(OutOfRange):
        await entries(metadata, Cursor(sequence=2**64 - 1))


async def test_window(metadata: Stores) -> None:
    """The window tells the newest event, the oldest that is kept, when that came, and what all take."""
    empty = await metadata.log.window()
    assert (empty.oldest, empty.newest.sequence, empty.since, empty.bytes) == (1, 0, None, 0)

    before = datetime.now(UTC) - timedelta(milliseconds=1)
    await metadata.log.append("test", numbered(1, 10, size=10_000))
    found = await metadata.log.window()
    assert (found.oldest, found.newest.sequence) == (1, 10)
    assert found.since is not None
    assert before <= found.since <= datetime.now(UTC)
    assert 100_000 < found.bytes < 200_000


@pytest.mark.parametrize("kind", ["local", "socket"])
async def test_what_is_not_kept_any_more(tmp_path: Path, kind: str) -> None:
    """Who asks for events that are gone is told which and what there is, or goes on with a gap where it wants to."""
    async with stores(tmp_path, kind, limits=Limits(events=100)) as metadata:
        await metadata.log.append("test", numbered(1, TRIM_EVERY))
        oldest = TRIM_EVERY - 99
        with pytest.raises(OutOfRange, match=f"after 7 .* 8 was asked for, and the oldest is {oldest}"):
            await entries(metadata, Cursor(sequence=7))
        with pytest.raises(OutOfRange, match=f"the oldest is event {oldest}"):
            await entries(metadata, datetime.now(UTC) - timedelta(days=1))
        for start in (Cursor(sequence=7), datetime.now(UTC) - timedelta(days=1)):
            begin, *found = await entries(metadata, start, gaps=True)
            assert (begin.lost, begin.cursor.sequence) == (True, oldest - 1)
            assert [entry.cursor.sequence for entry in found] == list(range(oldest, TRIM_EVERY + 1))
        assert len(await topics(metadata, Cursor(sequence=oldest - 1))) == 100
        assert (await metadata.log.window()).oldest == oldest


async def test_reader_that_is_slower_than_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that lets the log pass it is told so in the middle, or told of the gap and led on."""
    monkeypatch.setattr("metadatad.exchange.REMEMBERED", 10)
    async with stores(tmp_path, "local", limits=Limits(events=10)) as metadata:
        told, led = metadata.log.read(), metadata.log.read(gaps=True)
        await anext(told), await anext(led)
        await metadata.log.append("test", numbered(1, TRIM_EVERY))
        with pytest.raises(OutOfRange, match="1 was asked for, and the oldest is 503"):
            await anext(told)
        gap, first = await anext(led), await anext(led)
        assert (gap.lost, gap.envelope, gap.cursor.sequence) == (True, None, 502)
        assert first.cursor.sequence == 503


async def test_the_log_takes_bounded_bytes(tmp_path: Path) -> None:
    """However large events are, the log keeps to its bytes, and the space of those that went is used again."""
    async with stores(tmp_path, "local", limits=Limits(bytes=1 << 20)) as metadata:
        for i in range(40):
            await metadata.log.append("test", numbered(10 * i + 1, 10 * i + 10, size=30_000))
        found = await metadata.log.window()
        assert found.bytes <= (1 << 20) * 17 // 16 + 32_768
        assert len(await topics(metadata, Edge.OLDEST)) == found.newest.sequence - found.oldest + 1
    assert (tmp_path / "metadata.sqlite").stat().st_size < 3 << 20


async def test_cursor_of_an_earlier_run(tmp_path: Path) -> None:
    """A cursor stays good when the service starts again, with events in between or none."""
    cursors = []
    for first in (1, 6):
        async with stores(tmp_path, "local") as metadata:
            cursors += [entry.cursor for entry in await entries(metadata, Edge.NOW)]
            await metadata.log.append("test", numbered(first, first + 4))
            cursors += [entry.cursor for entry in await entries(metadata, Edge.OLDEST)]
    for _ in range(2):  # runs in which nothing happens
        async with stores(tmp_path, "local") as metadata:
            for cursor in cursors:
                assert await topics(metadata, cursor) == [f"/n/{i}" for i in range(cursor.sequence + 1, 11)]


async def test_cursor_of_before_a_restore(tmp_path: Path) -> None:
    """After a backup was put back, cursors of what was written since the backup are refused, earlier ones are good."""
    async with stores(tmp_path, "local") as metadata:
        await metadata.log.append("test", numbered(1, 5))
    shutil.copy(tmp_path / "metadata.sqlite", tmp_path / "backup")
    async with stores(tmp_path, "local") as metadata:
        await metadata.log.append("test", numbered(6, 9))
        cursors = [entry.cursor for entry in await entries(metadata, Edge.OLDEST)]
    shutil.copy(tmp_path / "backup", tmp_path / "metadata.sqlite")
    async with stores(tmp_path, "local") as metadata:
        await metadata.log.append("other", numbered(16, 19))
        for cursor in cursors:
            if cursor.sequence <= 5:
                assert len(await topics(metadata, cursor)) == 9 - cursor.sequence
            else:
                with pytest.raises(FailedPrecondition, match="put back to an earlier state"):
                    await entries(metadata, cursor)


async def test_nothing_is_missed_or_doubled_between_log_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers that attach while 16 writers run, from anywhere, see every event after their start once and in order."""
    monkeypatch.setattr("metadatad.exchange.REMEMBERED", 20)
    monkeypatch.setattr("metadatad.exchange.BATCH", 7)
    async with stores(tmp_path, "local") as metadata:
        with context.within(namespace="test"):
            async with asyncio.TaskGroup() as group:
                writers = [group.create_task(_write(metadata, name)) for name in range(16)]
                readers = []
                while not all(writer.done() for writer in writers):
                    newest = (await metadata.log.window()).newest
                    starts = (Edge.NOW, newest, Cursor(sequence=newest.sequence // 2), Edge.OLDEST)
                    readers += [group.create_task(_sequences(metadata, start, 16 * 40)) for start in starts]
                    await asyncio.sleep(0.01)
        log = [entry.envelope for entry in await entries(metadata, Edge.OLDEST) if entry.envelope]
        for reader in readers:
            begin, found = reader.result()
            assert [sequence for sequence, _ in found] == list(range(begin + 1, 16 * 40 + 1))
            assert [envelope for _, envelope in found] == log[begin:]


async def _write(metadata: Stores, name: int) -> None:
    for i in range(40):
        await metadata.events.publish(f"/writer/{name}/{i}", PAYLOAD)


async def _sequences(metadata: Stores, start: Start, last: int) -> tuple[int, list[tuple[int, Envelope]]]:
    begin, found = -1, []
    async with asyncio.timeout(30):
        async for entry in metadata.log.read(start):
            if begin < 0:
                begin = entry.cursor.sequence
            elif entry.envelope is not None:
                found.append((entry.cursor.sequence, entry.envelope))
            if entry.cursor.sequence == last:
                break
    return begin, found


async def test_what_was_answered_before_attaching_is_not_new(metadata: Stores) -> None:
    """An event whose publication was answered before a reader attached is not among those from now on."""
    with context.within(namespace="test"):
        async with asyncio.TaskGroup() as group:
            others = group.create_task(_write(metadata, 0))
            for i in range(20):
                await metadata.events.publish(f"/before/{i}", PAYLOAD)
                (begin,) = await entries(metadata, Edge.NOW, 1)
                assert f"/before/{i}" not in await topics(metadata, begin.cursor)
            await others


async def test_events_of_before_the_history_are_kept(tmp_path: Path) -> None:
    """A database of an earlier version keeps its events and their numbers."""
    scripts = (await in_thread(migrations, "metadatad"))[:2]
    insert = "INSERT INTO events (time, namespace, topic, type_url, value) VALUES (?, 'ns', ?, 'x', x'00')"
    async with open_database(tmp_path / "metadata.sqlite", scripts) as database:
        rows = [(i, f"/n/{i}") for i in range(1, 6)]
        await database.write(lambda connection: connection.executemany(insert, rows))
        await database.write(lambda connection: connection.execute("DELETE FROM events WHERE sequence < 3"))
    async with stores(tmp_path, "local") as metadata:
        await metadata.log.append("test", numbered(6, 6))
        found = [entry.cursor.sequence for entry in await entries(metadata, Edge.OLDEST) if entry.envelope]
        assert found == [3, 4, 5, 6]
        assert await topics(metadata, Cursor(sequence=2)) == ["/n/3", "/n/4", "/n/5", "/n/6"]


async def test_following_across_restarts(tmp_path: Path) -> None:
    """A reader that follows gets each event once and in order while the service stops and starts again."""
    channel = connect(f"unix://{tmp_path / 'metadatad.sock'}")
    found: list[str] = []

    async def read() -> None:
        async for entry in follow(RemoteEventLog(channel), patience=30):
            found.extend([entry.envelope.topic if entry.envelope else ""])

    async def until(count: int) -> None:
        async with asyncio.timeout(30):
            while len(found) < count:
                await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        reader = None
        for away in (0, 10, 20):
            async with stores(tmp_path, "local") as metadata:
                await metadata.log.append("test", numbered(away + 1, away + 5))
                async with serving(tmp_path, metadata):
                    reader = reader or group.create_task(read())
                    await until(away + 1)
                    await metadata.log.append("test", numbered(away + 6, away + 10))
                    await until(away + 6)
        assert reader is not None
        reader.cancel()
    channel.close()
    assert found == ["", *(f"/n/{i}" for i in range(6, 31))]


async def test_following_what_is_not_there(tmp_path: Path) -> None:
    """Without a service at the beginning, or for longer than the reader has patience, the reader is told."""
    channel = connect(f"unix://{tmp_path / 'metadatad.sock'}")
    with pytest.raises(Unavailable):
        await anext(follow(RemoteEventLog(channel)))
    async with stores(tmp_path, "local") as metadata, serving(tmp_path, metadata):
        reader = follow(RemoteEventLog(channel), patience=0.1)
        await anext(reader)
    with pytest.raises(Unavailable):
        await anext(reader)
    channel.close()
