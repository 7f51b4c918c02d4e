"""The event suite on ours, direct and over a socket, and on a real containerd; and what is ours alone."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import pytest

from carina import context
from carina.aio.threads import in_thread
from carina.api.containerd.services.events.v1 import EventsStub, ForwardRequest
from carina.api.containerd.types import Envelope as WireEnvelope
from carina.api.google.protobuf import Any
from carina.errors import InvalidArgument, ResourceExhausted
from carina.events import Envelope, Numbered
from carina.events.client import RemoteEventLog, RemoteEventService
from carina.namespaces import Namespace
from carina.rpc.client import connect
from carina.rpc.server import serve
from carina.typed import TypedValue
from conformance.events_suite import PAYLOAD, EventSuite
from metadatad.eventlog import TRIM_EVERY, Limits
from support.metadata import Services, Stores, stores


class TestLocal(EventSuite):
    @pytest.fixture
    def metadata(self, local_stores: Stores) -> Services:
        return local_stores


class TestRemote(EventSuite):
    @pytest.fixture
    def metadata(self, remote_stores: Stores) -> Services:
        return remote_stores


@pytest.mark.root
class TestContainerd(EventSuite):
    """containerd 1.6, where Debian's package has that."""

    differences: ClassVar[Mapping[str, str]] = {
        "test_bad_filter": "containerd says so with the status UNKNOWN",
    }

    @pytest.fixture
    def metadata(self, containerd_services: Services) -> Services:
        return containerd_services


def envelope(topic: str) -> Envelope:
    return Envelope(timestamp=datetime.now(UTC), namespace="test", topic=topic, event=PAYLOAD)


async def test_events_of_a_namespace_are_in_it(local_stores: Stores) -> None:
    """Events of a namespace's record are in that namespace, as in containerd 2."""
    stream = local_stores.events.subscribe()
    await local_stores.namespaces.create(Namespace(name="made"))
    await local_stores.namespaces.update(Namespace(name="made", labels={"a": "b"}))
    await local_stores.namespaces.delete("made")
    assert [(await anext(stream)).namespace for _ in range(3)] == ["made"] * 3


async def test_what_is_forwarded_has_a_time(tmp_path: Path) -> None:
    """An envelope without a timestamp or an event is refused (containerd 1.6 dies of the latter)."""
    event = Any(type_url="example.Event")
    async with stores(tmp_path, "socket") as remote:
        channel = connect(f"unix://{tmp_path / 'metadatad.sock'}")
        stub = EventsStub(channel)
        for envelope in (
            None,
            WireEnvelope(namespace="a", topic="/a", event=event),
            WireEnvelope(namespace="a", topic="/a", timestamp=datetime.now(UTC)),
        ):
            with pytest.raises(InvalidArgument):
                await stub.forward(ForwardRequest(envelope=envelope))
        channel.close()
        assert (await remote.log.window()).newest.sequence == 0


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


@contextlib.asynccontextmanager
async def metadata_service(directory: Path) -> AsyncIterator[tuple[str, int]]:
    """metadatad as a process: its address and its pid."""
    state = directory / "state"
    state.mkdir()
    command = [sys.executable, "-m", "metadatad", "--root", str(directory / "root"), "--state", str(state)]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(30):
            while not await in_thread((state / "metadatad.sock").exists):
                await asyncio.sleep(0.02)
        yield f"unix://{state}/metadatad.sock", process.pid
    finally:
        process.kill()
        await process.wait()


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("through", ["directly", "through a gateway"])
async def test_subscribers_that_do_not_read(tmp_path: Path, through: str) -> None:
    """Subscribers that never read their sockets take bounded memory and hold up neither publishers nor others."""
    large = TypedValue("example.Event", bytes(500_000))
    async with contextlib.AsyncExitStack() as stack:
        address, pid = await stack.enter_async_context(metadata_service(tmp_path))
        if through != "directly":
            upstream = connect(address)
            stack.callback(upstream.close)
            address = f"unix://{tmp_path}/gateway.sock"
            await stack.enter_async_context(serve(address, [], name="gatewayd", grace=0.1, route=lambda _: upstream))
        channels = [connect(address) for _ in range(12)]
        for channel in channels:
            stack.callback(channel.close)
        for channel in channels[:10]:
            stuck = RemoteEventLog(channel).read()
            stack.push_async_callback(stuck.aclose)  # type: ignore[attr-defined]
            await anext(stuck)
            connection = channel.ready()
            assert connection is not None
            connection._output._transport.pause_reading()
        reader = RemoteEventLog(channels[10]).read()
        await anext(reader)
        before = await in_thread(resident, pid)
        with context.within(namespace="test"):
            for i in range(80):
                async with asyncio.timeout(30):
                    await RemoteEventService(channels[11]).publish(f"/n/{i}", large)
                    found = (await anext(reader)).envelope
                    assert found is not None
                    assert found.topic == f"/n/{i}"
        # 40 MB for each of ten; kept for one is what its socket and its stream may hold, and it is at the same events.
        assert await in_thread(resident, pid) - before < 150 << 20
