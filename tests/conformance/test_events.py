"""What every event service promises, direct and over a socket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from carina import context
from carina.containers import Container
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from carina.events import Envelope, Numbered
from carina.images import Image
from carina.namespaces import Namespace
from carina.typed import Runtime, TypedValue
from metadatad.eventlog import TRIM_EVERY, Limits
from support.metadata import Stores, stores

PAYLOAD = TypedValue("example.Event", b"\x01\x02\x03")


def envelope(topic: str) -> Envelope:
    return Envelope(timestamp=datetime.now(UTC), namespace="test", topic=topic, event=PAYLOAD)


@pytest.fixture(params=["local", "socket"])
async def metadata(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    async with stores(tmp_path, request.param) as opened:
        with context.within(namespace="test"):
            yield opened


@contextlib.asynccontextmanager
async def listening(metadata: Stores, filters: Sequence[str] = ()) -> AsyncIterator["Listener"]:
    """Subscribe, and wait until the subscription counts."""
    async with asyncio.TaskGroup() as group:
        listener = Listener()
        task = group.create_task(listener.run(metadata.events.subscribe(filters)))
        before = Envelope(timestamp=datetime.now(UTC), namespace="probe", topic="/probe", event=PAYLOAD)
        if not filters:
            while not listener.seen:
                await metadata.events.forward(before)
                await asyncio.sleep(0.01)
        else:
            await asyncio.sleep(0.2)
        yield listener
        task.cancel()


class Listener:
    def __init__(self) -> None:
        self.seen: list[Envelope] = []

    async def run(self, stream: AsyncIterator[Envelope]) -> None:
        async for envelope in stream:
            self.seen.append(envelope)

    @property
    def topics(self) -> list[str]:
        return [envelope.topic for envelope in self.seen if envelope.topic != "/probe"]

    async def wait(self, count: int) -> list[str]:
        async with asyncio.timeout(5):
            while len(self.topics) < count:
                await asyncio.sleep(0.005)
        return self.topics


async def test_published_arrives(metadata: Stores) -> None:
    """An event arrives with namespace, topic, time and its payload byte for byte."""
    async with listening(metadata) as listener:
        await metadata.events.publish("/tasks/start", PAYLOAD)
        await listener.wait(1)
        envelope = listener.seen[-1]
        assert (envelope.namespace, envelope.topic, envelope.event) == ("test", "/tasks/start", PAYLOAD)
        assert abs((datetime.now(UTC) - envelope.timestamp).total_seconds()) < 10


async def test_forwarded_keeps_namespace_and_time(metadata: Stores) -> None:
    """A forwarded event keeps the namespace and time that it has."""
    moment = datetime(2020, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    envelope = Envelope(timestamp=moment, namespace="other", topic="/tasks/exit", event=PAYLOAD)
    async with listening(metadata) as listener:
        await metadata.events.forward(envelope)
        await listener.wait(1)
        assert listener.seen[-1] == envelope


async def test_order(metadata: Stores) -> None:
    """Events arrive in the order in which they were accepted."""
    async with listening(metadata) as listener:
        for i in range(50):
            await metadata.events.publish(f"/n/{i}", PAYLOAD)
        assert await listener.wait(50) == [f"/n/{i}" for i in range(50)]


@pytest.mark.parametrize("topic", ["", "/", "tasks", "/tasks/", "/tasks//exit", "/tasks/ä", "/tasks/../x"])
async def test_bad_topics(metadata: Stores, topic: str) -> None:
    """A topic is a path of identifiers."""
    with pytest.raises(InvalidArgument):
        await metadata.events.publish(topic, PAYLOAD)


async def test_publishing_needs_a_namespace(metadata: Stores) -> None:
    """Without a namespace nothing is published or forwarded."""
    with context.use(context.Call()), pytest.raises(FailedPrecondition):
        await metadata.events.publish("/a", PAYLOAD)
    with pytest.raises(InvalidArgument):
        await metadata.events.forward(Envelope(timestamp=datetime.now(UTC), namespace="", topic="/a", event=PAYLOAD))


async def test_filters(metadata: Stores) -> None:
    """Filters select by topic, namespace and fields of known payloads."""
    filters = ['topic=="/x"', "namespace==other", 'event.name==wanted,topic~="/images/.*"']
    async with listening(metadata, filters) as listener:
        for topic in ("/x", "/y"):
            await metadata.events.publish(topic, PAYLOAD)
        with context.within(namespace="other"):
            await metadata.events.publish("/z", PAYLOAD)
        for name in ("unwanted", "wanted"):
            target = Descriptor(media_type="x", digest=Digest.of(b""), size=1)
            await metadata.images.create(Image(name=name, target=target))
        assert await listener.wait(3) == ["/x", "/z", "/images/create"]


async def test_malformed_payload_harms_nobody(tmp_path: Path) -> None:
    """A payload that is not what its type says matches no filter on its fields, and others get the event."""
    bad = TypedValue("containerd.events.TaskExit", b"\xff\xff\xff")
    async with stores(tmp_path, "local") as local:
        with context.within(namespace="test"):
            filtered, everything = local.events.subscribe(["event.container_id"]), local.events.subscribe()
            good = TypedValue("containerd.events.TaskExit", b"\x0a\x01c")
            await local.events.publish("/tasks/exit", bad)
            await local.events.publish("/tasks/exit", good)
            assert [(await anext(everything)).event for _ in range(2)] == [bad, good]
            assert (await anext(filtered)).event == good


async def test_bad_filter(metadata: Stores) -> None:
    """A filter that is not valid is refused."""
    with pytest.raises(InvalidArgument):
        async for _ in metadata.events.subscribe(["topic=="]):
            pass


async def test_records_tell_of_changes(metadata: Stores) -> None:
    """Every change of a namespace, image or container is followed by containerd's event for it."""
    async with listening(metadata) as listener:
        await metadata.namespaces.create(Namespace(name="made"))
        await metadata.namespaces.update(Namespace(name="made", labels={"a": "b"}))
        await metadata.namespaces.delete("made")
        target = Descriptor(media_type="x", digest=Digest.of(b""), size=1)
        await metadata.images.create(Image(name="i", target=target))
        await metadata.images.update(Image(name="i", target=target, labels={"a": "b"}))
        await metadata.images.delete("i")
        container = Container(id="c", runtime=Runtime(name="r"), spec=PAYLOAD)
        await metadata.containers.create(container)
        await metadata.containers.update(container, ["labels"])
        await metadata.containers.delete("c")
        kinds = ("namespaces", "images", "containers")
        assert await listener.wait(9) == [
            f"/{kind}/{verb}" for kind in kinds for verb in ("create", "update", "delete")
        ]
        types = [envelope.event.type_url for envelope in listener.seen if envelope.topic != "/probe"]
        assert types == [
            *(f"containerd.events.Namespace{verb}" for verb in ("Create", "Update", "Delete")),
            *(f"containerd.services.images.v1.Image{verb}" for verb in ("Create", "Update", "Delete")),
            *(f"containerd.events.Container{verb}" for verb in ("Create", "Update", "Delete")),
        ]
        spaces = [envelope.namespace for envelope in listener.seen if envelope.topic != "/probe"]
        assert spaces == ["made"] * 3 + ["test"] * 6


async def test_refused_change_tells_nothing(metadata: Stores) -> None:
    """A change that was refused is followed by no event."""
    async with listening(metadata) as listener:
        with contextlib.suppress(InvalidArgument):
            await metadata.containers.create(Container(id="c"))
        await metadata.events.publish("/last", PAYLOAD)
        assert await listener.wait(1) == ["/last"]


async def test_slow_subscriber_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscriber that is slower than the log is cut off with a clear status; publishers are not held up."""
    monkeypatch.setattr("metadatad.exchange.REMEMBERED", 10)
    async with stores(tmp_path, "local", limits=Limits(events=10)) as local:
        stream = local.events.subscribe()
        many = [Numbered(number=i, envelope=envelope(f"/n/{i}")) for i in range(1, TRIM_EVERY + 1)]
        await local.log.append("test", many)
        with pytest.raises(ResourceExhausted, match=r"did not keep up.*1 was asked for, and the oldest is 503"):
            await anext(stream)


async def test_a_subscriber_may_be_behind_what_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few events are held in memory, by number and by bytes; a slower subscriber gets every event all the same."""
    monkeypatch.setattr("metadatad.exchange.REMEMBERED", 10)
    monkeypatch.setattr("metadatad.exchange.REMEMBERED_BYTES", 10_000)
    async with stores(tmp_path, "local") as local:
        with context.within(namespace="test"):
            stream = local.events.subscribe()
            for i in range(20):
                await local.events.publish(f"/n/{i}", TypedValue("x", bytes(4000 if i < 10 else 1)))
            assert [(await anext(stream)).topic for _ in range(20)] == [f"/n/{i}" for i in range(20)]


async def test_the_log_has_every_event(tmp_path: Path) -> None:
    """Events are in the log in the order in which subscribers saw them."""
    async with stores(tmp_path, "local") as local:
        with context.within(namespace="test"):
            stream = local.events.subscribe()
            await asyncio.gather(*(local.events.publish(f"/n/{i}", PAYLOAD) for i in range(30)))
            seen = [(await anext(stream)).topic for _ in range(30)]
            rows = await local.records.read(
                lambda c: [row[0] for row in c.execute("SELECT topic FROM events ORDER BY sequence")]
            )
            assert rows == seen
