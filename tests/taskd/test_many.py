"""Many containers, many times: everything survives a killed taskd, and nothing grows.

CARINA_TEST_CONTAINERS and CARINA_TEST_CYCLES say how many; a few unless they are set.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from carina import context
from carina.errors import CarinaError
from carina.tasks import Status
from support.spec import exec_spec
from support.tasks import World, world

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

CONTAINERS = int(os.environ.get("CARINA_TEST_CONTAINERS", "20"))
CYCLES = int(os.environ.get("CARINA_TEST_CYCLES", "50"))
MEMORY = 24 << 20
"""Growth that is none: caches, and what the allocator keeps."""


@asynccontextmanager
async def served() -> AsyncIterator[World]:
    """taskd in a process of its own."""
    async with world(exit_event_seconds=1) as carina:
        with context.no_deadline():
            await carina.start_process()
            yield carina


async def each(ids: Sequence[str], work: Callable[[str], Awaitable[None]]) -> None:
    """Some at the same time."""
    limit = asyncio.Semaphore(8)

    async def one(id: str) -> None:
        async with limit:
            await work(id)

    async with asyncio.TaskGroup() as group:
        for id in ids:
            group.create_task(one(id), name=id)


def held(carina: World) -> dict[str, int]:
    """What could leak, counted."""
    assert carina.process is not None
    pid = carina.process.pid
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(carina.directory) in line]
    return {
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "processes": len(carina.shims()),
        "files": sum(len(names) for _, _, names in os.walk(carina.state)),
        "mounts": len(mounts),
        "cgroups": len([path for path in Path("/sys/fs/cgroup").glob(f"*/{carina.namespace}/*/") if path.is_dir()]),
    }


def memory(carina: World) -> int:
    assert carina.process is not None
    for line in Path(f"/proc/{carina.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


async def until_back(carina: World, before: dict[str, int]) -> None:
    """Wait until no more is held than before; a shim ends a moment after its task was deleted."""
    for _ in range(600):
        now = held(carina)
        if all(now[name] <= count for name, count in before.items()):
            return
        await asyncio.sleep(0.05)
    assert now == before


async def test_all_survive() -> None:
    """taskd is killed under many containers: those that run are found running, and each end is told once."""
    async with served() as carina:
        ids = [f"many-{number}" for number in range(CONTAINERS)]
        pids = {}

        async def run(id: str) -> None:
            await carina.run("sh", "-c", f"until [ -e /end-{id} ]; do sleep 0.1; done; exit 5", id=id)
            pids[id] = (await carina.tasks.get(id)).pid

        async def stop(id: str) -> None:
            assert (await carina.tasks.wait(id)).status == (5 if id in ended else 137)
            await carina.tasks.delete(id)
            await carina.events.until("/tasks/delete", id)

        await each(ids, run)
        ended = set(ids[::4])
        await asyncio.to_thread(carina.kill_process)
        for id in ended:
            (carina.rootfs / f"end-{id}").touch()
        await carina.start_process()
        async with asyncio.timeout(60):
            while any(task.status is Status.UNKNOWN for task in await carina.tasks.list()):
                await asyncio.sleep(0.05)  # not connected yet
        states = {task.container_id: task for task in await carina.tasks.list()}
        assert set(states) == set(ids)
        for id in set(ids) - ended:
            assert (states[id].status, states[id].pid) == (Status.RUNNING, pids[id])
            await carina.tasks.kill(id, signal.SIGKILL)
        await each(ids, stop)
        assert {id: [exit.exit_status for exit in carina.events.exits(id)] for id in ids} == {
            id: [5] if id in ended else [137] for id in ids
        }


async def test_nothing_grows() -> None:
    """Cycles of create, start, wait and delete, and of failing execs, leave nothing in taskd or on the machine."""
    async with served() as carina:

        async def cycle(id: str) -> None:
            await carina.run("true", id=id)
            assert (await carina.tasks.wait(id)).status == 0
            await carina.tasks.delete(id)

        async def failing(exec_id: str) -> None:
            await carina.tasks.exec("stays", exec_id, exec_spec("absent"))
            with pytest.raises(CarinaError, match="executable file not found"):
                await carina.tasks.start("stays", exec_id)
            await carina.tasks.delete("stays", exec_id)

        await carina.run("sleep", "1000", id="stays")
        await each([f"first-{number}" for number in range(8)], cycle)
        await each([f"first-{number}" for number in range(8)], failing)
        before, size = held(carina), memory(carina)
        await each([f"cycle-{number}" for number in range(CYCLES)], cycle)
        await each([f"exec-{number}" for number in range(CYCLES)], failing)
        await until_back(carina, before)
        assert memory(carina) - size < MEMORY
        await carina.tasks.kill("stays", signal.SIGKILL)
        await carina.tasks.wait("stays")
        await carina.tasks.delete("stays")
