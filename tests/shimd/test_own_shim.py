"""What our shim promises beyond the suite of tasks, under taskd: sharing, replacement, memory, logs, nothing left."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from carina import shim
from carina.errors import CarinaError, NotFound
from carina.tasks import Status, Stdio
from support.spec import exec_spec
from support.tasks import OWN, World, fifo_reader, world
from taskd.runtime import find_shim

pytestmark = pytest.mark.root


@pytest.fixture
async def carina() -> AsyncIterator[World]:
    async with world(OWN) as made, made.local():
        yield made


async def _end(carina: World, id: str) -> int:
    try:
        await carina.tasks.kill(id, signal.SIGKILL)
    except NotFound:
        pass
    status = (await carina.tasks.wait(id)).status
    await carina.tasks.delete(id)
    return status


async def test_containers_of_a_namespace_share_a_shim(carina: World) -> None:
    """Containers that are started at once, and later, are all on one process; each has its own status."""
    async with asyncio.TaskGroup() as group:
        started = [group.create_task(carina.run("sh", "-c", f"sleep 100; exit {n}")) for n in range(4)]
    ids = [one.result() for one in started]
    later = await carina.run("sh", "-c", "exit 9")

    assert (await carina.tasks.wait(later)).status == 9
    assert len(carina.shims()) == 1
    await carina.tasks.delete(later)
    assert [await _end(carina, id) for id in ids] == [137] * 4


async def test_a_shim_that_dies_is_replaced(carina: World) -> None:
    """Containers outlive their shim; another takes them over, with their processes, and tells their exact ends."""
    ids = [await carina.run("sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.01; done") for _ in range(2)]
    await carina.tasks.exec(ids[0], "e", exec_spec("sh", "-c", "while :; do sleep 0.01; done"))
    executed = await carina.tasks.start(ids[0], "e")
    pids = [(await carina.tasks.get(id)).pid for id in ids]
    (before,) = carina.shims()
    waiting = [asyncio.create_task(carina.tasks.wait(id)) for id in ids]
    await asyncio.sleep(0)

    os.kill(before, signal.SIGKILL)
    async with asyncio.timeout(30):
        while not (after := carina.shims()) or before in after:
            await asyncio.sleep(0.05)
    async with asyncio.timeout(30):
        while [(await carina.tasks.get(id)).status for id in ids] != [Status.RUNNING] * 2:
            await asyncio.sleep(0.05)

    assert [(await carina.tasks.get(id)).pid for id in ids] == pids
    assert (await carina.tasks.get(ids[0], "e")).pid == executed
    await carina.tasks.kill(ids[0], signal.SIGKILL, exec_id="e")
    assert (await carina.tasks.wait(ids[0], "e")).status in (137, 255)
    assert (await carina.tasks.delete(ids[0], "e")).pid == executed
    for id in ids:
        await carina.tasks.kill(id, signal.SIGTERM)
    # 255 where the kernel does not tell how other processes' children ended.
    assert {(await end).status for end in waiting} <= {5, 255}
    for id in ids:
        await carina.tasks.delete(id)
        await carina.events.until("/tasks/delete", id)
        assert carina.events.topics(id).count("/tasks/exit") == (2 if id == ids[0] else 1)
    assert len(carina.shims()) == 1


async def test_nobody_waits_for_readiness(monkeypatch: pytest.MonkeyPatch) -> None:
    """A taskd that was started by a supervisor which wants to know when it is ready starts containers all the same."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/absent/notify")
    async with world(OWN, call_seconds=20) as carina, carina.local():
        id = await carina.run("sleep", "100")
        assert await _end(carina, id) == 137


async def test_memory_runs_out(carina: World) -> None:
    """A container that is killed for its use of memory has an event that says so."""
    id = carina.add("sh", "-c", "x=aaaaaaaa; while :; do x=$x$x; done", memory=16 << 20)
    await carina.tasks.create(id, rootfs=carina.mounts)
    await carina.tasks.start(id)

    assert (await carina.tasks.wait(id)).status == 137
    await carina.events.until("/tasks/oom", id, seconds=30)
    await carina.tasks.delete(id)


async def test_output_to_files_and_programs(carina: World, tmp_path: Path) -> None:
    """`file://` is appended to, `binary://` gets both outputs and its arguments, and is waited for."""
    file, logged = tmp_path / "deep" / "out.log", tmp_path / "logged"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nexec 5>&-\n{{ echo $CONTAINER_ID $*; cat <&3; cat <&4; echo end; }} > {logged}\n")
    program.chmod(0o755)

    for _ in range(2):
        id = await carina.run("echo", "into the file", stdio=Stdio(stdout=f"file://{file}", stderr=f"file://{file}"))
        await carina.tasks.wait(id)
        await carina.tasks.delete(id)
    log = f"binary://{program}?one=two"
    id = await carina.run("sh", "-c", "echo out; echo err >&2", stdio=Stdio(stdout=log, stderr=log))
    await carina.tasks.wait(id)
    await carina.tasks.delete(id)

    assert file.read_text() == "into the file\n" * 2
    async with asyncio.timeout(30):
        while not logged.exists() or not logged.read_text().endswith("end\n"):
            await asyncio.sleep(0.02)
    assert logged.read_text() == f"{id} one two\nout\nerr\nend\n"


async def test_output_that_nobody_reads_takes_no_memory(carina: World, tmp_path: Path) -> None:
    """Processes that print without end, with and without terminal, wait for a reader; the shim does not grow."""
    id = await carina.run("sleep", "1000")
    (shim_pid,) = carina.shims()
    before = _memory(shim_pid)
    readers = []
    for exec_id, terminal in (("plain", False), ("terminal", True)):
        path = tmp_path / exec_id
        await asyncio.to_thread(os.mkfifo, path)
        readers.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        flood = exec_spec("sh", "-c", "while :; do cat /bin/busybox; done", terminal=terminal)
        await carina.tasks.exec(id, exec_id, flood, Stdio(stdout=str(path), terminal=terminal))
        await carina.tasks.start(id, exec_id)
    await asyncio.sleep(2)
    taken = [0, 0]
    async with asyncio.timeout(60):
        while min(taken) < 32 << 20:
            for place, reader in enumerate(readers):
                try:
                    taken[place] += len(os.read(reader, 1 << 20))
                except BlockingIOError:
                    await asyncio.sleep(0.001)
    await asyncio.sleep(1)
    assert _memory(shim_pid) - before < 8 << 20
    for exec_id in ("plain", "terminal"):
        await carina.tasks.kill(id, signal.SIGKILL, exec_id=exec_id)
    for reader in readers:
        os.close(reader)
    for exec_id in ("plain", "terminal"):
        assert (await carina.tasks.wait(id, exec_id)).status == 137
        await carina.tasks.delete(id, exec_id)
    assert await _end(carina, id) == 137


def _memory(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


async def test_bad_outputs_are_refused(carina: World) -> None:
    """An output that is not there, or of no kind that is known, fails the creation in a sentence and leaves nothing."""
    for path, expected in (
        ("/absent/fifo", "/absent/fifo: no such file"),
        ("ftp://somewhere", "expected the path of a FIFO"),
        ("binary:///absent/program", "/absent/program: no such file"),
    ):
        id = carina.add("true")
        with pytest.raises(CarinaError, match=expected):
            await carina.tasks.create(id, rootfs=carina.mounts, stdio=Stdio(stdout=path))
        assert not carina.bundle(id).exists()


async def test_a_reader_may_go_and_another_come(carina: World) -> None:
    """A container goes on writing when its client is gone, and a later client reads on."""
    stdout, marks = carina.directory / "stdout", carina.directory / "stdin"
    os.mkfifo(marks)
    writer = os.open(marks, os.O_RDWR | os.O_NONBLOCK)
    try:
        async with fifo_reader(stdout):
            stdio = Stdio(stdin=str(marks), stdout=str(stdout))
            id = await carina.run("sh", "-c", "read a; echo first; read a; echo second", stdio=stdio)
        os.write(writer, b"1\n2\n")
        assert (await carina.tasks.wait(id)).status == 0
        reader = os.open(stdout, os.O_RDONLY | os.O_NONBLOCK)
        os.close(reader)
        await carina.tasks.delete(id)
    finally:
        os.close(writer)


async def test_failing_processes_leave_nothing(carina: World) -> None:
    """Commands that are not there, in containers and beside them, leave no descriptor, file or control group."""
    id = await carina.run("sleep", "100")
    (pid,) = carina.shims()
    counts = []
    for _ in range(5):
        for attempt in range(4):
            with pytest.raises(CarinaError, match="absent"):
                await carina.create("/bin/absent")
            await carina.tasks.exec(id, f"e{attempt}", exec_spec("/bin/absent"))
            with pytest.raises(CarinaError, match="absent"):
                await carina.tasks.start(id, f"e{attempt}")
            await carina.tasks.delete(id, f"e{attempt}")
        counts.append(len(os.listdir(f"/proc/{pid}/fd")))

    assert counts == [counts[0]] * 5
    assert sorted(path.name for path in carina.bundle(id).parent.iterdir()) == [id]
    assert [path for path in carina.bundle(id).iterdir() if path.name.startswith(".")] == []
    await _end(carina, id)
    assert list(Path("/sys/fs/cgroup").glob(f"*/{carina.namespace}/*/")) == []


def test_it_stands_in_for_the_shim_of_runc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where containerd's shim is not installed, a client that asks for it gets ours; another runtime is missing."""
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_shim("io.containerd.runc.v2").name == shim.BINARY
    assert find_shim("io.containerd.carina.v1").name == shim.BINARY
    with pytest.raises(NotFound, match="containerd-shim-runc-v1"):
        find_shim("io.containerd.runc.v1")
