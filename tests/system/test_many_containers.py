"""Many containers under a whole constellation: they outlive its services, each end is told once, and nothing grows.

With CARINA_LARGE=1 in the environment there are 200 containers, and 1,000 cycles and failing processes.
"""

import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from carina import context
from carina.client import Client
from carina.containers import Container
from carina.errors import CarinaError, Unavailable
from carina.mount import Mount
from carina.tasks import Status, Stdio
from carina.typed import Runtime
from support.constellation import Constellation
from support.spec import exec_spec, make_rootfs, spec

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800)]

T = TypeVar("T")
LARGE = bool(os.environ.get("CARINA_LARGE"))
CONTAINERS = 200 if LARGE else 24
CYCLES = 1000 if LARGE else 40
OWN, GO = "io.containerd.carina.v1", "io.containerd.runc.v2"
KILLED = ("taskd", "metadatad", "gatewayd")
MEMORY = 24 << 20
"""Growth that is none: caches, and what the allocator keeps."""
SLACK = 8
"""Descriptors: far fewer than the cycles."""
PATIENCE = 120.0


class Crowd:
    """A constellation, a client of it, and a root file system that containers share."""

    def __init__(self, constellation: Constellation, client: Client, rootfs: Path) -> None:
        self.constellation, self.client, self.rootfs = constellation, client, rootfs

    async def run(self, id: str, *arguments: str, runtime: str = OWN) -> int:
        namespace = self.constellation.namespace
        record = Container(id=id, runtime=Runtime(name=runtime), spec=spec(namespace, id, *arguments))
        await self.client.containers.create(record)
        await self.client.tasks.create(
            id, rootfs=[Mount(type="bind", source=str(self.rootfs), options=("rbind", "ro"))]
        )
        return await self.client.tasks.start(id)

    async def wait(self, id: str, exec_id: str = "") -> int:
        return (await patiently(lambda: self.client.tasks.wait(id, exec_id))).status

    async def remove(self, id: str) -> None:
        await self.client.tasks.delete(id)
        await self.client.containers.delete(id)

    def pids(self) -> dict[str, int]:
        """The services that are well."""
        found = self.constellation.carina("status", *self.constellation.paths, check=False).output.splitlines()[1:]
        return {fields[0]: int(fields[2]) for fields in map(str.split, found) if fields[1] == "ok"}

    async def until_well(self, *, without: Sequence[int] = ()) -> dict[str, int]:
        end = time.monotonic() + PATIENCE
        while True:
            pids = await asyncio.to_thread(self.pids)
            if set(KILLED) <= set(pids) and not set(without) & set(pids.values()):
                return pids
            assert time.monotonic() < end, self.constellation.log.read_text()[-3000:]
            await asyncio.sleep(0.1)

    async def events(self) -> list[tuple[str, str, int]]:
        """Topic, container and status of what the log has of tasks' first processes."""
        arguments = ("events", "--since", "oldest", "--no-follow", "--format", "json", 'topic~="/tasks/.*"')
        printed = (await asyncio.to_thread(self.constellation.carina, *arguments)).output.splitlines()
        found = [(line["topic"], line["event"]) for line in map(json.loads, printed)]
        return [
            (topic, event["container_id"], event.get("exit_status", 0))
            for topic, event in found
            if event.get("id", event["container_id"]) in (event["container_id"], "")
        ]


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Again and again, as a client does whose service is killed."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return await call()
        except Unavailable:
            assert time.monotonic() < end
            await asyncio.sleep(0.1)


async def each(ids: Sequence[str], work: Callable[[str], Awaitable[object]]) -> None:
    """Some at the same time."""
    limit = asyncio.Semaphore(8)

    async def one(id: str) -> None:
        async with limit:
            await work(id)

    async with asyncio.TaskGroup() as group:
        for id in ids:
            group.create_task(one(id), name=id)


@asynccontextmanager
async def crowd() -> AsyncIterator[Crowd]:
    constellation = Constellation(namespace=f"carina-many-{os.getpid()}")
    await asyncio.to_thread(constellation.__enter__)
    try:
        with tempfile.TemporaryDirectory(dir="/tmp") as directory:
            rootfs = await asyncio.to_thread(make_rootfs, Path(directory) / "rootfs")
            async with Client(constellation.address) as client:
                with context.within(namespace=constellation.namespace), context.no_deadline():
                    yield Crowd(constellation, client, rootfs)
            await asyncio.to_thread(constellation.clean_namespace)
    finally:
        await asyncio.to_thread(constellation.__exit__)


async def test_all_outlive_the_services() -> None:
    """taskd, metadatad and gatewayd are killed together, three times, while containers end: each is told once."""
    async with crowd() as it:
        ids = [f"many-{number}" for number in range(CONTAINERS)]
        pids: dict[str, int] = {}

        async def run(id: str) -> None:
            script = f"until [ -e /end-{id} ]; do sleep 0.1; done; exit 5"
            runtime = GO if id.endswith("7") else OWN
            pids[id] = await it.run(id, "sh", "-c", script, runtime=runtime)

        await each(ids, run)
        waits = {id: asyncio.create_task(it.wait(id)) for id in ids}
        ended: list[str] = []
        well = await it.until_well()
        for round in range(3):
            batch = ids[round::4]
            doomed = [well[name] for name in KILLED]
            for id in batch:
                (it.rootfs / f"end-{id}").touch()
            for pid in doomed:
                os.kill(pid, signal.SIGKILL)
            well = await it.until_well(without=doomed)
            ended += batch
            assert {await waits[id] for id in batch} == {5}
        left = [id for id in ids if id not in ended]
        assert not any(waits[id].done() for id in left)
        listed = {task.container_id: task for task in await patiently(it.client.tasks.list)}
        assert set(listed) == set(ids)
        for id in left:
            state = await patiently(lambda id=id: it.client.tasks.get(id))  # type: ignore[misc]
            assert (state.status, state.pid) == (Status.RUNNING, pids[id])
            await it.client.tasks.kill(id, signal.SIGKILL)
        assert {await waits[id] for id in left} == {137}
        await each(ids, it.remove)
        told = await _until_deleted(it, ids)
    for id in ids:
        ends = [status for topic, found, status in told if (topic, found) == ("/tasks/exit", id)]
        assert (id, ends) == (id, [5] if id in ended else [137])
        assert [topic for topic, found, _ in told if found == id].count("/tasks/delete") == 1


async def _until_deleted(it: Crowd, ids: Sequence[str]) -> list[tuple[str, str, int]]:
    end = time.monotonic() + PATIENCE
    while True:
        told = await it.events()
        if {id for topic, id, _ in told if topic == "/tasks/delete"} >= set(ids):
            return told
        assert time.monotonic() < end
        await asyncio.sleep(0.2)


def _held(it: Crowd, pids: dict[str, int]) -> dict[str, int]:
    """What could leak, counted: on the machine, and the descriptors of each service."""
    directory, namespace = str(it.constellation.directory), it.constellation.namespace
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    shims = [pid for pid in os.listdir("/proc") if pid.isdigit() and _is_shim(pid, namespace)]
    return {
        "mounts": len([line for line in lines if directory in line]),
        "files": sum(len(names) for _, _, names in os.walk(it.constellation.state)),
        "bundles": sum(len(names) for _, names, _ in os.walk(it.constellation.root / "taskd")),
        "cgroups": len([path for path in Path("/sys/fs/cgroup").glob(f"*/{namespace}/*/") if path.is_dir()]),
        "processes": len(shims),
        **{f"descriptors of {name}": len(os.listdir(f"/proc/{pid}/fd")) for name, pid in pids.items()},
        **{
            f"descriptors of shim {pid}": len(os.listdir(f"/proc/{pid}/fd"))
            for pid in shims
            if _is_shim(pid, namespace)
        },
    }


def _more(now: dict[str, int], before: dict[str, int]) -> dict[str, tuple[int, int]]:
    """What there is more of. Services open some connections and readers of their database when they first need them."""
    allowed = {name: before.get(name, 0) + (SLACK if name.startswith("descriptors") else 0) for name in now}
    return {name: (allowed[name], count) for name, count in now.items() if count > allowed[name]}


def _is_shim(pid: str, namespace: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return False
    return namespace in words and any("containerd-shim-" in word for word in words)


def _memory(pids: dict[str, int]) -> dict[str, int]:
    found = {}
    for name, pid in pids.items():
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                found[name] = int(line.split()[1]) * 1024
    return found


async def test_nothing_grows() -> None:
    """Cycles of a container's whole life, and processes that fail, with and without terminal, leave nothing."""
    async with crowd() as it:

        async def cycle(id: str) -> None:
            await it.run(id, "true")
            assert await it.wait(id) == 0
            await it.remove(id)

        async def failing(exec_id: str) -> None:
            terminal = exec_id.endswith(("1", "3", "5", "7", "9"))
            tasks = it.client.tasks
            await tasks.exec("stays", exec_id, exec_spec("absent", terminal=terminal), Stdio(terminal=terminal))
            if terminal:
                await tasks.resize_pty("stays", 80, 25, exec_id=exec_id)
            with pytest.raises(CarinaError, match="executable file not found"):
                await tasks.start("stays", exec_id)
            await tasks.delete("stays", exec_id)

        await it.run("stays", "sleep", "100000")
        pids = await it.until_well()
        for work in (cycle, failing):
            await each([f"first-{number}" for number in range(16)], work)
        await asyncio.sleep(2)
        before, size = _held(it, pids), _memory(pids)
        for work in (cycle, failing):
            await each([f"{work.__name__}-{number}" for number in range(CYCLES)], work)
        end = time.monotonic() + PATIENCE
        while more := _more(_held(it, pids), before):
            assert time.monotonic() < end, more
            await asyncio.sleep(0.5)
        assert await asyncio.to_thread(it.pids) == pids
        grown = {name: bytes - size[name] for name, bytes in _memory(pids).items()}
        assert {name: amount for name, amount in grown.items() if amount > MEMORY} == {}
        await it.client.tasks.kill("stays", signal.SIGKILL)
        await it.wait("stays")
        await it.remove("stays")
        assert await it.client.containers.list() == []
