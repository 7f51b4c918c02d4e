"""Our own sandbox controller: sandboxes that are shims, with tasks in them, across restarts and deaths."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from carina import shim
from carina.api.containerd.events import SandboxExit
from carina.api.containerd.runc.v1 import Options
from carina.errors import (
    AlreadyExists,
    CarinaError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
)
from carina.platforms import host
from carina.rpc.codec import decode, encode
from carina.sandboxes import Sandbox
from carina.tasks import Status
from carina.typed import Runtime, TypedValue
from support.grpc_shim import install
from support.shim import install as misbehaving
from support.tasks import OWN, RUNC, World, world
from taskd.daemon import Opened, opened
from taskd.runtime import find_shim

pytestmark = pytest.mark.root


@asynccontextmanager
async def running(carina: World) -> AsyncIterator[Opened]:
    async with opened(carina.config, carina.containers, carina.events) as own:  # type: ignore[arg-type]
        carina.tasks = own.tasks
        yield own
        own.give_up_waits()


@pytest.fixture
async def carina() -> AsyncIterator[World]:
    async with world(OWN, exit_event_seconds=0.3) as made:
        yield made


def record(id: str = "box", runtime: str = OWN) -> Sandbox:
    return Sandbox(id=id, runtime=Runtime(name=runtime))


async def run_in(carina: World, sandbox: str, *arguments: str) -> str:
    """A running task whose container is in a sandbox."""
    id = carina.add(*arguments)
    carina.containers.records[id] = replace(carina.containers.records[id], sandbox=sandbox)
    await carina.tasks.create(id, rootfs=carina.mounts)
    await carina.tasks.start(id)
    return id


def exits(carina: World) -> list[SandboxExit]:
    return [decode(SandboxExit, e.event.value) for e in carina.events.seen if e.topic == "/sandboxes/exit"]


def left(carina: World) -> list[str]:
    """Bundles of sandboxes."""
    directory = carina.config.sandboxes / carina.namespace
    return sorted(os.listdir(directory)) if directory.exists() else []


async def gone(carina: World) -> None:
    async with asyncio.timeout(30):
        while carina.shims():
            await asyncio.sleep(0.05)


async def test_life_of_a_sandbox(carina: World) -> None:
    """Created, started, asked, stopped and shut down: it has a shim of its own, tells its state, and leaves nothing."""
    async with running(carina) as own:
        boxes = own.sandboxes
        await boxes.create("box", sandbox=record())
        with pytest.raises(AlreadyExists, match="sandbox box: already exists"):
            await boxes.create("box", sandbox=record())
        assert (await boxes.status("box")).state == "SANDBOX_NOTREADY"
        started = await boxes.start("box")
        with pytest.raises(FailedPrecondition, match="started already"):
            await boxes.start("box")
        assert [started.pid] == carina.shims()
        assert started.address.startswith("ttrpc+unix:///run/containerd/s/")
        assert started.version == 3
        state = await boxes.status("box", verbose=True)
        assert (state.pid, state.state, state.address) == (started.pid, "SANDBOX_READY", started.address)
        assert (state.created_at, state.exited_at) == (started.created_at, None)
        assert await boxes.platform("box") == replace(host(), os_version="", os_features=(), variant="")
        with pytest.raises(Unimplemented, match="no process of its own"):
            await boxes.metrics("box")
        waiting = asyncio.create_task(boxes.wait("box"))
        await boxes.stop("box")
        assert (await waiting).status == 0
        await boxes.stop("box")
        assert (await boxes.status("box")).state == "SANDBOX_NOTREADY"
        await boxes.shutdown("box")
        await boxes.shutdown("box")
        with pytest.raises(NotFound, match="sandbox box: not found"):
            await boxes.status("box")
        await gone(carina)
        await carina.events.until("/sandboxes/exit", "box")
    assert [topic for topic in carina.events.topics("box") if topic.startswith("/sandboxes/")] == [
        "/sandboxes/create",
        "/sandboxes/start",
        "/sandboxes/exit",
    ]
    assert left(carina) == []
    assert not Path(started.address.removeprefix("ttrpc+unix://")).exists()


async def test_tasks_are_on_the_shim_of_their_sandbox(carina: World) -> None:
    """Those whose container names a sandbox run in its shim, others don't; stopping it ends them, and only them."""
    async with running(carina) as own:
        await own.sandboxes.create("box", sandbox=record())
        started = await own.sandboxes.start("box")
        inside = [await run_in(carina, "box", "sleep", "100") for _ in range(2)]
        outside = await carina.run("sleep", "100")
        assert len(carina.shims()) == 2
        for id in inside:
            assert _parent((await carina.tasks.get(id)).pid) == started.pid
            assert (carina.bundle(id) / "sandbox").read_text() == "box"
        assert _parent((await carina.tasks.get(outside)).pid) != started.pid
        await carina.tasks.kill(inside[0], signal.SIGKILL)
        assert (await carina.tasks.wait(inside[0])).status == 137
        await carina.tasks.delete(inside[0])
        assert (await own.sandboxes.status("box")).state == "SANDBOX_READY"
        waiting = asyncio.create_task(carina.tasks.wait(inside[1]))
        await asyncio.sleep(0)
        await own.sandboxes.stop("box", seconds=1)
        assert (await waiting).status in (137, 143)
        with pytest.raises(Unavailable, match="its sandbox box has ended"):
            await run_in(carina, "box", "true")
        assert (await carina.tasks.get(outside)).status is Status.RUNNING
        await carina.tasks.delete(inside[1])
        await own.sandboxes.shutdown("box")
        with pytest.raises(NotFound, match="its sandbox box is not running"):
            await run_in(carina, "box", "true")
        await carina.tasks.kill(outside, signal.SIGKILL)
        await carina.tasks.wait(outside)
        await carina.tasks.delete(outside)
        assert len(carina.events.exits(inside[1])) == 1


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_a_sandbox_outlives_taskd(carina: World) -> None:
    """After a restart it is there with its tasks; its end meanwhile is reported once, and so is one that was known."""
    async with running(carina) as own:
        for id in ("box", "other"):
            await own.sandboxes.create(id, sandbox=record(id))
        started = await own.sandboxes.start("box")
        await own.sandboxes.start("other")
        task = await run_in(carina, "box", "sleep", "100")
        await own.sandboxes.stop("other")
        await carina.events.until("/sandboxes/exit", "other")
    async with running(carina) as own:
        async with asyncio.timeout(30):
            while (await own.sandboxes.status("box")).pid != started.pid:
                await asyncio.sleep(0.05)
        with pytest.raises(AlreadyExists):
            await own.sandboxes.create("box", sandbox=record())
        assert (await carina.tasks.get(task)).status is Status.RUNNING
        second = await run_in(carina, "box", "sleep", "100")
        assert _parent((await carina.tasks.get(second)).pid) == started.pid
    os.kill(started.pid, signal.SIGKILL)
    async with running(carina) as own:
        assert (await own.sandboxes.wait("box")).status == 255
        assert (await own.sandboxes.wait("other")).status == 0
        for id in (task, second):
            await carina.events.until("/tasks/exit", id)
        await own.sandboxes.shutdown("box")
        await own.sandboxes.shutdown("other")
        await gone(carina)
    assert sorted((exit.sandbox_id, exit.exit_status) for exit in exits(carina)) == [("box", 255), ("other", 0)]
    assert left(carina) == []


async def test_a_creation_that_was_cut_off(carina: World) -> None:
    """taskd dies before it has noted that the sandbox was created: its shim is ended, and nothing is left or told."""
    async with running(carina) as own:
        await own.sandboxes.create("box", sandbox=record())
        bundle = carina.config.sandboxes / carina.namespace / "box"
    memory = bundle / "sandbox.json"
    memory.write_text(memory.read_text().replace('"created": true', '"created": false'))
    async with running(carina) as own:
        async with asyncio.timeout(60):
            while left(carina):
                await asyncio.sleep(0.05)
        await gone(carina)
        await own.sandboxes.create("box", sandbox=record())
        await own.sandboxes.shutdown("box")
        await gone(carina)
    assert len(exits(carina)) == 1
    assert _sockets(carina.config.gateway, carina.namespace) == []


def _sockets(address: Path, namespace: str) -> list[str]:
    """What is left of a sandbox's group in the sockets' directory."""
    name = Path(shim.socket(address=str(address), namespace=namespace, group="container/box")).name
    return [entry for entry in os.listdir(shim.DIRECTORY) if entry.startswith(name)]


async def test_the_shim_of_a_sandbox_dies(carina: World) -> None:
    """Its end is told once, its tasks end and are reported, and it can be shut down and made again."""
    async with running(carina) as own:
        await own.sandboxes.create("box", sandbox=record())
        started = await own.sandboxes.start("box")
        task = await run_in(carina, "box", "sleep", "100")
        waiting, ending = asyncio.create_task(own.sandboxes.wait("box")), asyncio.create_task(carina.tasks.wait(task))
        await asyncio.sleep(0.05)
        os.kill(started.pid, signal.SIGKILL)
        assert ((await waiting).status, (await ending).status) == (255, 137)
        state = await own.sandboxes.status("box")
        assert (state.state, state.pid) == ("SANDBOX_NOTREADY", 0)
        with pytest.raises(Unavailable, match="its shim is dead"):
            await own.sandboxes.platform("box")
        await own.sandboxes.stop("box")
        await own.sandboxes.shutdown("box")
        await own.sandboxes.create("box", sandbox=record())
        assert (await own.sandboxes.start("box")).pid != started.pid
        await own.sandboxes.shutdown("box")
        await gone(carina)
        async with asyncio.timeout(20):
            while len(exits(carina)) < 2:
                await asyncio.sleep(0.02)
    assert [exit.exit_status for exit in exits(carina)] == [255, 0]
    assert len(carina.events.exits(task)) == 1
    assert _sockets(carina.config.gateway, carina.namespace) == []
    assert left(carina) == []


@pytest.mark.skipif(shutil.which("containerd-shim-runc-v2") is None, reason="containerd's shim is not installed")
async def test_a_shim_without_sandboxes(carina: World, tmp_path: Path) -> None:
    """It is named, over ttrpc and gRPC, nothing is left of it, and the id can be used."""
    foreign = await asyncio.to_thread(install, tmp_path / "shims")
    async with running(carina) as own:
        for runtime in (RUNC, str(foreign)):
            with pytest.raises(Unimplemented, match=r"sandbox box: shim containerd-shim-\S+ does not serve CreateSand"):
                await own.sandboxes.create("box", sandbox=record(runtime=runtime))
            await gone(carina)
            assert left(carina) == []
        await own.sandboxes.create("box", sandbox=record())
        await own.sandboxes.shutdown("box")
    assert carina.events.topics("box").count("/sandboxes/create") == 1


async def test_a_sandbox_shim_that_speaks_grpc(carina: World, tmp_path: Path) -> None:
    """The sandbox and the tasks in it are reached over gRPC, across a restart of taskd."""
    behind = await asyncio.to_thread(find_shim, OWN)
    binary = await asyncio.to_thread(install, tmp_path / "shims", str(behind))
    async with running(carina) as own:
        await own.sandboxes.create("box", sandbox=record(runtime=str(binary)))
        started = await own.sandboxes.start("box")
        assert started.address.startswith("grpc+unix:///")
        task = await run_in(carina, "box", "sleep", "100")
    async with running(carina) as own:
        async with asyncio.timeout(30):
            while (await own.sandboxes.status("box")).state != "SANDBOX_READY":
                await asyncio.sleep(0.05)
        waiting = asyncio.create_task(carina.tasks.wait(task))
        await asyncio.sleep(0)
        await own.sandboxes.stop("box", seconds=1)
        assert (await waiting).status in (137, 143)
        await carina.tasks.delete(task)
        await own.sandboxes.shutdown("box")
        await gone(carina)
    assert left(carina) == []
    assert len(carina.events.exits(task)) == 1


async def test_a_client_can_say_where_the_task_goes(carina: World) -> None:
    """runc's options name the Task API of a sandbox, in containerd's form; another form is refused."""
    async with running(carina) as own:
        await own.sandboxes.create("box", sandbox=record())
        started = await own.sandboxes.start("box")
        options = Options(task_api_address=started.address, task_api_version=started.version)
        id = carina.add("sleep", "100", options=TypedValue("containerd.runc.v1.Options", encode(options)))
        record_options = carina.containers.records[id].runtime
        assert record_options is not None
        await carina.tasks.create(id, rootfs=carina.mounts, options=record_options.options)
        await carina.tasks.start(id)
        assert _parent((await carina.tasks.get(id)).pid) == started.pid
        await carina.tasks.kill(id, signal.SIGKILL)
        await carina.tasks.wait(id)
        await carina.tasks.delete(id)
        bad = TypedValue("containerd.runc.v1.Options", encode(Options(task_api_address="pigeon+unix:///x")))
        with pytest.raises(InvalidArgument, match="not one that is spoken here"):
            await carina.tasks.create(carina.add("true"), rootfs=carina.mounts, options=bad)
        await own.sandboxes.shutdown("box")
        await gone(carina)


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("garbage", "answered no address"),
        ("fails", "no luck today"),
        ("nobody", "nobody.sock"),
        ("silent", "no answer within"),
        ("dies", "connection was lost"),
        ("nonsense", "not a ttrpc response"),
        ("oversize", "longer than"),
        ("wordy", "the dog ate it"),
    ],
)
async def test_a_shim_that_misbehaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, text: str) -> None:
    """It fails the creation of its sandbox with words, and leaves neither process nor bundle."""
    await asyncio.to_thread(misbehaving, tmp_path / "shims", mode)
    monkeypatch.setenv("SHIM_CALLS", str(tmp_path / "calls"))
    settings = {
        "create_seconds": 1 if mode == "silent" else 20,
        "call_seconds": 2,  # for the Shutdown that it does not answer
        "shim_directories": f"['{tmp_path / 'shims'}']",
    }
    async with world(OWN, **settings) as made, running(made) as own:
        with pytest.raises(CarinaError, match=text):
            await own.sandboxes.create("box", sandbox=record(runtime=f"io.carina.{mode}.v1"))
        await gone(made)
        assert left(made) == []
        with pytest.raises(NotFound):
            await own.sandboxes.status("box")


async def test_bad_requests(carina: World) -> None:
    """An id that is none, a record without runtime, a runtime that is not installed, a damaged spec: said, not done."""
    async with running(carina) as own:
        boxes = own.sandboxes
        with pytest.raises(InvalidArgument, match="sandbox id"):
            await boxes.create("../x", sandbox=record("../x"))
        with pytest.raises(InvalidArgument, match="sandbox box has no runtime"):
            await boxes.create("box", sandbox=Sandbox(id="box"))
        with pytest.raises(NotFound, match="containerd-shim-nothing-v1 is not installed"):
            await boxes.create("box", sandbox=record(runtime="io.containerd.nothing.v1"))
        with pytest.raises(InvalidArgument, match="not JSON"):
            await boxes.create("box", sandbox=replace(record(), spec=TypedValue("x", b"{")))
        with pytest.raises(InvalidArgument, match="holds no record"):
            await boxes.create("box")
        for call in (boxes.start, boxes.platform, boxes.wait, boxes.status, boxes.metrics):
            with pytest.raises(NotFound, match="sandbox nobody: not found"):
                await call("nobody")
        await boxes.stop("nobody")
    assert (left(carina), carina.shims()) == ([], [])
