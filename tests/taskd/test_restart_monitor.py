"""The restart monitor: containers are kept running, or stopped, as their labels say."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from carina import context
from carina.containers import Container
from carina.errors import InvalidArgument, NotFound
from carina.mount import Mount
from carina.namespaces import Namespace
from carina.tasks import Process, Status
from support.tasks import OWN, World, world
from taskd.policy import COUNT, EXPLICITLY_STOPPED, LOG_URI, POLICY, STATUS, Policy, restarts
from taskd.restart import RestartMonitor

ENDED = Process(container_id="c", status=Status.STOPPED, exit_status=0)
FAILED = replace(ENDED, exit_status=3)


@pytest.mark.parametrize(
    ("labels", "process", "wanted"),
    [
        ({}, None, True),
        ({POLICY: "always"}, ENDED, True),
        ({POLICY: "no"}, FAILED, False),
        ({POLICY: "on-failure"}, FAILED, True),
        ({POLICY: "on-failure"}, ENDED, False),
        ({POLICY: "on-failure"}, None, False),
        ({POLICY: "on-failure:2", COUNT: "1"}, FAILED, True),
        ({POLICY: "on-failure:2", COUNT: "2"}, FAILED, False),
        ({POLICY: "on-failure:0", COUNT: "9"}, FAILED, True),
        ({POLICY: "unless-stopped"}, ENDED, True),
        ({POLICY: "unless-stopped", EXPLICITLY_STOPPED: "false"}, ENDED, True),
        ({POLICY: "unless-stopped", EXPLICITLY_STOPPED: "true"}, ENDED, False),
        ({POLICY: "always", EXPLICITLY_STOPPED: "true"}, ENDED, True),
    ],
)
def test_policies(labels: Mapping[str, str], process: Process | None, wanted: bool) -> None:
    """Each policy decides as containerd's does, also where there is no task to know a status of."""
    assert restarts(labels, process) is wanted


@pytest.mark.parametrize("text", ["sometimes", "always:3", "on-failure:", "on-failure:-1", "on-failure:x", "no:1"])
def test_policies_that_are_none(text: str) -> None:
    """They are refused by name, and so is a count that is not a number."""
    with pytest.raises(InvalidArgument, match=f"restart policy '{text}' is not one of"):
        Policy.parse(text)
    with pytest.raises(InvalidArgument, match="not a number"):
        restarts({POLICY: "on-failure:3", COUNT: "many"}, FAILED)


class Records:
    """Containers, namespaces and snapshots of a metadatad that is a world's table."""

    def __init__(self, carina: World) -> None:
        self.carina = carina
        self.vanishing = ""
        """Is listed, and then no longer there."""

    async def list(self, filters: Sequence[str] = ()) -> Sequence[Container]:
        if context.namespace() != self.carina.namespace:
            return []
        return [one for one in self.carina.containers.records.values() if STATUS in one.labels]

    async def get(self, id: str) -> Container:
        if id == self.vanishing:
            raise NotFound(f"container {id}: not found")
        return await self.carina.containers.get(id)

    async def update(self, container: Container, fields: Sequence[str] = ()) -> Container:
        assert list(fields) == [f"labels.{COUNT}"]
        old = self.carina.containers.records[container.id]
        new = replace(old, labels={**old.labels, **container.labels})
        self.carina.containers.records[container.id] = new
        return new

    async def mounts(self, key: str) -> Sequence[Mount]:
        assert key == "snapshot"
        return self.carina.mounts


class _Namespaces:
    def __init__(self, name: str) -> None:
        self.name = name

    async def list(self) -> Sequence[Namespace]:
        return [Namespace(name="empty"), Namespace(name=self.name)]


class Monitored:
    def __init__(self, carina: World, tenants: Collection[str] = ()) -> None:
        self.carina, self.records = carina, Records(carina)
        self.monitor = RestartMonitor(
            carina.tasks,
            self.records,  # type: ignore[arg-type]
            _Namespaces(carina.namespace),  # type: ignore[arg-type]
            lambda name: self.records,
            interval=5.0,
            tenants=tenants,
        )

    def add(self, *arguments: str, **labels: str) -> str:
        """A container that is to be looked after, made a while ago."""
        id = self.carina.add(*arguments)
        self.label(id, **labels)
        return id

    def label(self, id: str, **labels: str) -> None:
        names = {
            "status": STATUS,
            "policy": POLICY,
            "count": COUNT,
            "stopped": EXPLICITLY_STOPPED,
            "loguri": LOG_URI,
        }
        old = self.carina.containers.records[id]
        given = {names[name]: value for name, value in labels.items()}
        self.carina.containers.records[id] = replace(
            old,
            labels={**old.labels, **given},
            snapshot_key="snapshot",
            created_at=old.created_at or datetime(2026, 1, 1, tzinfo=UTC),
        )

    def count(self, id: str) -> str:
        return self.carina.containers.records[id].labels.get(COUNT, "")

    async def begin(self, id: str) -> None:
        await self.carina.tasks.create(id, rootfs=self.carina.mounts)
        await self.carina.tasks.start(id)


@asynccontextmanager
async def monitored(carina: World, tenants: Collection[str] = ()) -> AsyncIterator[Monitored]:
    async with carina.local():
        yield Monitored(carina, tenants)
        for task in await carina.tasks.list():
            try:
                await carina.tasks.kill(task.container_id, signal.SIGKILL, all=True)
                await carina.tasks.wait(task.container_id)
            except NotFound:
                pass
            await carina.tasks.delete(task.container_id)


@pytest.fixture
async def carina() -> AsyncIterator[World]:
    async with world(OWN) as made:
        yield made


@pytest.mark.root
async def test_a_tenants_labels_start_nothing(carina: World) -> None:
    """In a namespace whose records a tenant may write, no label has a container run."""
    async with monitored(carina, tenants={carina.namespace}) as it:
        id = it.add("sleep", "100", status="running")
        await it.monitor.look()
        with pytest.raises(NotFound):
            await carina.tasks.get(id)


@pytest.mark.root
async def test_what_was_killed_runs_again(carina: World) -> None:
    """By the next look, with its count one higher and its output where the label says; what runs is left alone."""
    async with monitored(carina) as it:
        log = carina.directory / "log"
        id = it.add("sh", "-c", "echo again; sleep 100", status="running", loguri=f"file://{log}")
        await it.begin(id)
        first = (await carina.tasks.get(id)).pid
        await it.monitor.look()
        assert ((await carina.tasks.get(id)).pid, it.count(id)) == (first, "")
        os.kill(first, signal.SIGKILL)
        await carina.tasks.wait(id)
        await it.monitor.look()
        state = await carina.tasks.get(id)
        assert (state.status, state.pid != first, it.count(id)) == (Status.RUNNING, True, "1")
        async with asyncio.timeout(20):
            while not log.exists() or log.read_text() != "again\n":
                await asyncio.sleep(0.02)
        await carina.tasks.kill(id, signal.SIGKILL)
        await carina.tasks.wait(id)
        await carina.tasks.delete(id)
        await it.monitor.look()
        assert ((await carina.tasks.get(id)).status, it.count(id)) == (Status.RUNNING, "2")


@pytest.mark.root
async def test_what_is_not_to_run_does_not(carina: World) -> None:
    """Explicitly stopped, given up after its number of failures, ended well, paused, `no`: none is started."""
    async with monitored(carina) as it:
        stopped = it.add("sh", "-c", "exit 1", status="running", policy="unless-stopped", stopped="true")
        spent = it.add("sh", "-c", "exit 1", status="running", policy="on-failure:1")
        fine = it.add("true", status="running", policy="on-failure")
        never = it.add("sh", "-c", "exit 1", status="running", policy="no")
        bad = it.add("sh", "-c", "exit 1", status="running", policy="now and then")
        paused = it.add("sleep", "100", status="running")
        for id in (stopped, spent, fine, never, bad, paused):
            await it.begin(id)
        await carina.tasks.pause(paused)
        for id in (stopped, spent, fine, never, bad):
            await carina.tasks.wait(id)
        await it.monitor.look()
        await carina.tasks.wait(spent)
        await it.monitor.look()
        assert [it.count(id) for id in (stopped, spent, fine, never, bad, paused)] == ["", "1", "", "", "", ""]
        assert (await carina.tasks.get(paused)).status is Status.PAUSED
        await carina.tasks.resume(paused)


@pytest.mark.root
async def test_what_is_to_be_stopped_is(carina: World) -> None:
    """Status `stopped` ends a task and deletes it; one that is there no more, or never was, is no error."""
    async with monitored(carina) as it:
        id, absent = it.add("sleep", "100", status="running"), it.add("sleep", "100", status="stopped")
        await it.begin(id)
        it.label(id, status="stopped")
        await it.monitor.look()
        for one in (id, absent):
            with pytest.raises(NotFound):
                await carina.tasks.get(one)
        await it.monitor.look()
        assert await carina.tasks.list() == []


@pytest.mark.root
async def test_clients_have_time_to_start(carina: World) -> None:
    """A record that was just made, and a task that waits for its start, are left alone; not for ever."""
    async with monitored(carina) as it:
        fresh = it.add("sleep", "100", status="running")
        carina.containers.records[fresh] = replace(carina.containers.records[fresh], created_at=datetime.now(UTC))
        waiting = it.add("sleep", "100", status="running")
        await carina.tasks.create(waiting, rootfs=carina.mounts)
        pid = (await carina.tasks.get(waiting)).pid
        await it.monitor.look()
        assert [(task.container_id, task.pid) for task in await carina.tasks.list()] == [(waiting, pid)]
        await it.monitor.look()
        state = await carina.tasks.get(waiting)
        assert (state.status, state.pid != pid) == (Status.RUNNING, True)


@pytest.mark.root
async def test_a_container_that_vanishes_is_not_started(carina: World) -> None:
    """Its record goes between the look and the start: no task of it remains, and others are looked after."""
    async with monitored(carina) as it:
        gone = it.add("sleep", "100", status="running")
        other = it.add("sleep", "100", status="running")
        it.records.vanishing = gone
        await it.monitor.look()
        assert [task.container_id for task in await carina.tasks.list()] == [other]
        assert not carina.bundle(gone).exists()


@pytest.mark.root
async def test_a_restarted_taskd_goes_on(carina: World, tmp_path: Path) -> None:
    """What ended while it was away is started by the first look after it came back."""
    async with carina.local():
        it = Monitored(carina)
        id = it.add("sleep", "100", status="running", count="4")
        await it.begin(id)
        pid = (await carina.tasks.get(id)).pid
    os.kill(pid, signal.SIGKILL)
    async with monitored(carina) as it:
        async with asyncio.timeout(30):
            while it.count(id) != "5":
                await it.monitor.look()
                await asyncio.sleep(0.05)
        assert (await carina.tasks.get(id)).status is Status.RUNNING
