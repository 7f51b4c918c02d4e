"""taskd dies and comes back, shims die, metadatad is away: containers go on, and each exit is reported once."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from carina.errors import NotFound
from carina.tasks import Status
from support.spec import exec_spec
from support.tasks import World, world
from taskd.daemon import opened
from taskd.task import Phase

pytestmark = pytest.mark.root


@pytest.fixture
async def carina() -> AsyncIterator[World]:
    async with world(exit_event_seconds=0.3) as made:
        yield made


async def test_killed_and_restarted(carina: World) -> None:
    """taskd is killed: the container runs on, is manageable after the restart, and its exit is reported once."""
    await carina.start_process()
    id, brief = await carina.run("sleep", "100"), await carina.run("sleep", "0.6")
    await carina.tasks.exec(id, "e1", exec_spec("sleep", "0.6"))
    await carina.tasks.start(id, "e1")
    await carina.events.until("/tasks/exec-started", id)
    pid = (await carina.tasks.get(id)).pid
    await asyncio.to_thread(carina.kill_process)
    os.kill(pid, 0)
    await asyncio.sleep(0.7)  # both short ones end while nobody listens
    asked = carina.containers.asked
    await carina.start_process()
    state = await carina.tasks.get(id)
    assert (state.status, state.pid) == (Status.RUNNING, pid)
    assert (await carina.tasks.wait(brief)).status == 0
    assert (await carina.tasks.wait(id, "e1")).status == 0
    await carina.tasks.kill(id, signal.SIGKILL)
    assert (await carina.tasks.wait(id)).status == 137
    for each in (id, brief):
        await carina.tasks.delete(each)
    await asyncio.sleep(0.6)
    assert [(exit.id, exit.exit_status) for exit in carina.events.exits(brief)] == [(brief, 0)]
    assert sorted((exit.id, exit.exit_status) for exit in carina.events.exits(id)) == sorted([("e1", 0), (id, 137)])
    assert carina.containers.asked == asked
    assert carina.shims() == []
    await asyncio.to_thread(carina.kill_process)


async def test_shim_killed(carina: World) -> None:
    """A shim is killed: its container is ended, its exit reported once, its task and bundle are gone."""
    async with carina.local():
        id, other = await carina.run("sleep", "100"), await carina.run("sleep", "100")
        pid = (await carina.tasks.get(id)).pid
        socket = Path((carina.bundle(id) / "address").read_text().removeprefix("unix://"))
        waiting = asyncio.create_task(carina.tasks.wait(id))
        await asyncio.sleep(0.05)
        assert socket.is_socket()
        _kill_shims(carina, id)
        assert (await waiting).status == 137
        await carina.events.until("/tasks/delete", id)
        assert [(exit.pid, exit.exit_status) for exit in carina.events.exits(id)] == [(pid, 137)]
        async with asyncio.timeout(30):
            while carina.bundle(id).exists():
                await asyncio.sleep(0.01)
        assert not socket.exists()
        with pytest.raises(NotFound):
            await carina.tasks.get(id)
        assert _state(pid) in ("", "Z")
        assert [task.container_id for task in await carina.tasks.list()] == [other]
        await carina.tasks.kill(other, signal.SIGKILL)
        await carina.tasks.wait(other)
        await carina.tasks.delete(other)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def _shims(carina: World, id: str) -> list[int]:
    return [pid for pid in carina.shims() if id in Path(f"/proc/{pid}/cmdline").read_text()]


def _kill_shims(carina: World, id: str) -> None:
    for pid in _shims(carina, id):
        os.kill(pid, signal.SIGKILL)


async def test_slow_shim_keeps_its_container() -> None:
    """A shim whose connection breaks while it does not answer is not taken for dead: its container goes on."""
    async with world(start_seconds=2, state_seconds=0.5) as carina:
        async with opened(carina.config, carina.containers, carina.events) as own:  # type: ignore[arg-type]
            carina.tasks = own.tasks
            id = await carina.run("sleep", "100")
            task = own.registry.tasks[carina.namespace, id]
            pid, shim = (await carina.tasks.get(id)).pid, task.shim
            assert shim is not None
            [process] = carina.shims()
            os.kill(process, signal.SIGSTOP)
            try:
                assert shim._client is not None
                shim._client.close()
                async with asyncio.timeout(30):
                    while task.shim is shim or task.phase is Phase.CONNECTING:
                        await asyncio.sleep(0.05)
                assert (await carina.tasks.get(id)).status is Status.UNKNOWN
            finally:
                os.kill(process, signal.SIGCONT)
            assert (await carina.tasks.get(id)).pid == pid
            await carina.tasks.kill(id, signal.SIGKILL)
            assert (await carina.tasks.wait(id)).status == 137
            await carina.tasks.delete(id)
            own.registry.give_up_waits()


async def test_shim_killed_while_away(carina: World) -> None:
    """A shim that died while taskd was away is cleaned up at the start, and the exit reported once."""
    await carina.start_process()
    id = await carina.run("sleep", "100")
    await carina.events.until("/tasks/start", id)
    await asyncio.to_thread(carina.kill_process)
    _kill_shims(carina, id)
    for _ in range(2):
        await carina.start_process()
        await carina.events.until("/tasks/delete", id)
        async with asyncio.timeout(30):
            while carina.bundle(id).exists():
                await asyncio.sleep(0.01)
        await asyncio.to_thread(carina.kill_process)
    assert [exit.exit_status for exit in carina.events.exits(id)] == [137]


async def test_wedged_shim_after_restart(carina: World) -> None:
    """After a restart a shim that doesn't answer delays nobody but those who ask for its task."""
    async with carina.local():
        wedged, well = await carina.run("sleep", "100"), await carina.run("sleep", "100")
    shims = _shims(carina, wedged)
    for pid in shims:
        os.kill(pid, signal.SIGSTOP)
    try:
        async with carina.local():
            async with asyncio.timeout(8):
                assert (await carina.tasks.get(well)).status is Status.RUNNING
            states = {task.container_id: task.status for task in await carina.tasks.list()}
            assert states == {wedged: Status.UNKNOWN, well: Status.RUNNING}
            for pid in shims:
                os.kill(pid, signal.SIGCONT)
            async with asyncio.timeout(30):
                while (await carina.tasks.get(wedged)).status is not Status.RUNNING:
                    await asyncio.sleep(0.05)
            for id in (wedged, well):
                await carina.tasks.kill(id, signal.SIGKILL)
                await carina.tasks.wait(id)
                await carina.tasks.delete(id)
    finally:
        for pid in shims:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue


async def test_events_wait_for_metadatad(carina: World) -> None:
    """Events that metadatad can't take are kept over a restart, and delivered in order, once each."""
    carina.events.failing = True
    async with carina.local():
        id = await carina.run("true")
        await carina.tasks.wait(id)
        await carina.tasks.delete(id)
        await asyncio.sleep(0.2)
    assert carina.events.seen == []
    carina.events.failing = False
    async with carina.local():
        await carina.events.until("/tasks/delete", id)
        assert carina.events.topics(id) == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


async def test_one_shim_for_a_group(carina: World) -> None:
    """Tasks of one group share a shim, and end one by one."""
    async with carina.local():
        annotations = {"io.containerd.runc.v2.group": f"{carina.namespace}-pod"}
        first = await carina.run("sleep", "100", annotations=annotations)
        second = await carina.run("sleep", "100", annotations=annotations)
        assert len(carina.shims()) == 1
        for id, rest in ((first, [second]), (second, [])):
            await carina.tasks.kill(id, signal.SIGKILL)
            assert (await carina.tasks.wait(id)).status == 137
            await carina.tasks.delete(id)
            assert [task.container_id for task in await carina.tasks.list()] == rest
        await asyncio.sleep(0.1)
        assert carina.shims() == []
