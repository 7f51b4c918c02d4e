"""What every event service promises."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from carina import context
from carina.containers import Container
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import FailedPrecondition, InvalidArgument
from carina.events import Envelope
from carina.images import Image
from carina.namespaces import Namespace
from carina.rpc.any import describe
from carina.typed import Runtime, TypedValue
from conformance.suite import Suite
from support.metadata import Services

PAYLOAD = TypedValue("example.Event", b"\x01\x02\x03")
PROBE = "/probe"


@contextlib.asynccontextmanager
async def listening(metadata: Services, filters: Sequence[str] = ()) -> AsyncIterator["Listener"]:
    """Subscribe, and wait until the subscription counts. What others do meanwhile is not looked at."""
    space = context.namespace()
    own = {space, f"{space}-made", f"{space}-other"}
    filters = [*filters, f'topic=="{PROBE}"'] if filters else []
    async with asyncio.TaskGroup() as group:
        listener = Listener(own)
        task = group.create_task(listener.run(metadata.events.subscribe(filters)))
        async with asyncio.timeout(30):
            while not listener.probed:
                await metadata.events.publish(PROBE, PAYLOAD)
                await asyncio.sleep(0.01)
        yield listener
        task.cancel()


class Listener:
    def __init__(self, spaces: set[str]) -> None:
        self.seen: list[Envelope] = []
        self.probed = False
        self._spaces = spaces

    async def run(self, stream: AsyncIterator[Envelope]) -> None:
        async for envelope in stream:
            if envelope.namespace in self._spaces:
                self.probed = True
                if envelope.topic != PROBE:
                    self.seen.append(envelope)

    @property
    def topics(self) -> list[str]:
        return [envelope.topic for envelope in self.seen]

    async def wait(self, count: int) -> list[str]:
        async with asyncio.timeout(30):
            while len(self.seen) < count:
                await asyncio.sleep(0.005)
        return self.topics


class EventSuite(Suite):
    async def test_published_arrives(self, metadata: Services) -> None:
        """An event arrives with namespace, topic, time and its payload byte for byte."""
        async with listening(metadata) as listener:
            await metadata.events.publish("/tasks/start", PAYLOAD)
            await listener.wait(1)
            envelope = listener.seen[-1]
            found = (envelope.namespace, envelope.topic, envelope.event)
            assert found == (context.namespace(), "/tasks/start", PAYLOAD)
            assert abs((datetime.now(UTC) - envelope.timestamp).total_seconds()) < 10

    async def test_forwarded_keeps_namespace_and_time(self, metadata: Services) -> None:
        """A forwarded event keeps the namespace and time that it has."""
        moment = datetime(2020, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
        envelope = Envelope(
            timestamp=moment, namespace=f"{context.namespace()}-other", topic="/tasks/exit", event=PAYLOAD
        )
        async with listening(metadata) as listener:
            await metadata.events.forward(envelope)
            await listener.wait(1)
            assert listener.seen[-1] == envelope

    async def test_order(self, metadata: Services) -> None:
        """Events arrive in the order in which they were accepted."""
        async with listening(metadata) as listener:
            for i in range(50):
                await metadata.events.publish(f"/n/{i}", PAYLOAD)
            assert await listener.wait(50) == [f"/n/{i}" for i in range(50)]

    @pytest.mark.parametrize(
        "topic",
        ["", "/", "tasks", "/tasks/", "/tasks//exit", "/tasks/ä", "/tasks/../x", "/a..b", "/a-", f"/{'x' * 77}"],
    )
    async def test_bad_topics(self, metadata: Services, topic: str) -> None:
        """A topic is a path of identifiers, for what is published and for what is forwarded."""
        envelope = Envelope(timestamp=datetime.now(UTC), namespace=context.namespace(), topic=topic, event=PAYLOAD)
        with pytest.raises(InvalidArgument):
            await metadata.events.publish(topic, PAYLOAD)
        with pytest.raises(InvalidArgument):
            await metadata.events.forward(envelope)

    @pytest.mark.parametrize("topic", ["/a", "/A/b-c_d.e/0", f"/{'x' * 76}"])
    async def test_good_topics(self, metadata: Services, topic: str) -> None:
        """Identifiers have letters, digits and single separators between them, up to 76 characters."""
        async with listening(metadata) as listener:
            await metadata.events.publish(topic, PAYLOAD)
            assert await listener.wait(1) == [topic]

    async def test_publishing_needs_a_namespace(self, metadata: Services) -> None:
        """Without a namespace nothing is published or forwarded."""
        with context.use(context.Call()), pytest.raises(FailedPrecondition):
            await metadata.events.publish("/a", PAYLOAD)
        with pytest.raises(InvalidArgument):
            await metadata.events.forward(
                Envelope(timestamp=datetime.now(UTC), namespace="", topic="/a", event=PAYLOAD)
            )

    async def test_filters(self, metadata: Services) -> None:
        """Filters select by topic, namespace and fields of known payloads."""
        other = f"{context.namespace()}-other"
        filters = ['topic=="/x"', f"namespace=={other}", 'event.name==wanted,topic~="/images/.*"']
        async with listening(metadata, filters) as listener:
            for topic in ("/x", "/y"):
                await metadata.events.publish(topic, PAYLOAD)
            with context.within(namespace=other):
                await metadata.events.publish("/z", PAYLOAD)
            for name in ("unwanted", "wanted"):
                target = Descriptor(media_type="x", digest=Digest.of(b""), size=1)
                await metadata.images.create(Image(name=name, target=target))
            assert await listener.wait(3) == ["/x", "/z", "/images/create"]

    async def test_bad_filter(self, metadata: Services) -> None:
        """A filter that is not valid is refused."""
        with pytest.raises(InvalidArgument):
            async for _ in metadata.events.subscribe(["topic=="]):
                pass

    async def test_records_tell_of_changes(self, metadata: Services) -> None:
        """Every change of a namespace, image or container is followed by containerd's event for it, with its fields."""
        made = f"{context.namespace()}-made"
        target = Descriptor(media_type="x", digest=Digest.of(b""), size=1)
        runtime = Runtime(name="r")
        container = Container(id="c", image="i", runtime=runtime, spec=PAYLOAD, snapshotter="s", snapshot_key="k")
        changed = replace(container, labels={"a": "b"})
        async with listening(metadata) as listener:
            await metadata.namespaces.create(Namespace(name=made, labels={"x": "1"}))
            await metadata.namespaces.update(Namespace(name=made, labels={"a": "b"}), ["labels.a"])
            await metadata.namespaces.delete(made)
            await metadata.images.create(Image(name="i", target=target, labels={"x": "1"}))
            await metadata.images.update(Image(name="i", target=target, labels={"a": "b"}), ["labels.a"])
            await metadata.images.delete("i")
            await metadata.containers.create(container)
            await metadata.containers.update(changed, ["labels"])
            await metadata.containers.delete("c")
            kinds = ("namespaces", "images", "containers")
            topics = [f"/{kind}/{verb}" for kind in kinds for verb in ("create", "update", "delete")]
            assert await listener.wait(9) == topics

        types = [
            *(f"containerd.events.Namespace{verb}" for verb in ("Create", "Update", "Delete")),
            *(f"containerd.services.images.v1.Image{verb}" for verb in ("Create", "Update", "Delete")),
            *(f"containerd.events.Container{verb}" for verb in ("Create", "Update", "Delete")),
        ]
        assert [envelope.event.type_url for envelope in listener.seen] == types
        payloads = [
            *({"name": made, "labels": {"x": "1"}}, {"name": made, "labels": {"a": "b"}}, {"name": made}),
            *({"name": "i", "labels": {"x": "1"}}, {"name": "i", "labels": {"x": "1", "a": "b"}}, {"name": "i"}),
            {"id": "c", "image": "i", "runtime": {"name": "r"}},
            {"id": "c", "image": "i", "labels": {"a": "b"}, "snapshot_key": "k"},
            {"id": "c"},
        ]
        assert [describe(envelope.event) for envelope in listener.seen] == payloads
        assert [envelope.namespace for envelope in listener.seen[3:]] == [context.namespace()] * 6

    async def test_refused_change_tells_nothing(self, metadata: Services) -> None:
        """A change that was refused is followed by no event."""
        async with listening(metadata) as listener:
            with contextlib.suppress(InvalidArgument):
                await metadata.containers.create(Container(id="c"))
            await metadata.events.publish("/last", PAYLOAD)
            assert await listener.wait(1) == ["/last"]
