"""What every task service promises, direct and over a socket, with real shims and containers."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from carina import context
from carina.errors import AlreadyExists, CarinaError, FailedPrecondition, InvalidArgument, NotFound
from carina.tasks import Status, Stdio
from carina.typed import TypedValue
from support.clients import program
from support.foreigntasks import foreign
from support.spec import RESOURCES, exec_spec
from support.tasks import OWN, RUNC, World, fifo_reader, world

FOREIGN = "containerd"
"""Our shim under a real containerd."""
NEWER = program("containerd-shim-runc-v2")
"""containerd's shim of 2.x, which is started and reached in another way; named by its path."""
pytestmark = pytest.mark.root


@pytest.fixture(params=[RUNC, OWN, FOREIGN, *([pytest.param(NEWER, id="newer")] if NEWER else [])])
async def carina(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """With containerd's shim and with ours; direct on the one loop, over a socket on the other."""
    if request.param == FOREIGN:
        if isinstance(asyncio.get_running_loop(), uvloop.Loop):
            pytest.skip("a containerd of its own for each test: once is enough")
        async with world() as made, foreign(made):
            yield made
        return
    over_socket = isinstance(asyncio.get_running_loop(), uvloop.Loop)
    async with world(request.param) as made, made.running() if over_socket else made.local():
        yield made


def _only_ours(carina: World) -> None:
    if carina.address:
        pytest.skip("containerd refuses this too, in other words or with an error of no class")


async def test_exit_status(carina: World) -> None:
    """A process's exit status reaches whoever waits for it and whoever deletes it, and then nothing is left."""
    id = await carina.create("sh", "-c", "exit 7")
    assert (await carina.tasks.get(id)).status is Status.CREATED
    pid = await carina.tasks.start(id)
    ended = await carina.tasks.wait(id)
    assert ended.status == 7
    assert ended.exited_at is not None
    state = await carina.tasks.get(id)
    assert (state.status, state.exit_status, state.pid, state.container_id) == (Status.STOPPED, 7, pid, id)
    assert (await carina.tasks.wait(id)).status == 7
    gone = await carina.tasks.delete(id)
    assert (gone.status, gone.pid) == (7, pid)
    assert not carina.bundle(id).exists()
    assert not (carina.config.work / carina.namespace / id).exists()
    with pytest.raises(NotFound, match=f"task {id}:? not found"):
        await carina.tasks.get(id)


async def test_events_in_order(carina: World) -> None:
    """A task's life is told by events in order, each once."""
    id = await carina.run("true")
    await carina.tasks.wait(id)
    await carina.tasks.delete(id)
    await carina.events.until("/tasks/delete", id)
    assert carina.events.topics(id) == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


async def test_output(carina: World) -> None:
    """What a process writes comes out of the FIFOs it was given."""
    paths = [carina.directory / "stdout", carina.directory / "stderr"]
    async with fifo_reader(paths[0]) as out, fifo_reader(paths[1]) as err:
        id = await carina.run(
            "sh", "-c", "echo out; echo err >&2", stdio=Stdio(stdout=str(paths[0]), stderr=str(paths[1]))
        )
        await carina.tasks.wait(id)
        await carina.tasks.delete(id)
        assert (await out, await err) == (b"out\n", b"err\n")


async def test_input_until_closed(carina: World) -> None:
    """A process reads its stdin to the end, which comes when the writer has closed it and CloseIO was called."""
    stdin, stdout = carina.directory / "stdin", carina.directory / "stdout"
    os.mkfifo(stdin)
    writer = os.open(stdin, os.O_RDWR | os.O_NONBLOCK)
    async with fifo_reader(stdout) as out:
        id = await carina.run("cat", stdio=Stdio(stdin=str(stdin), stdout=str(stdout), stderr="/dev/null"))
        os.write(writer, b"through the container\n")
        os.close(writer)
        await carina.tasks.close_io(id)
        assert (await carina.tasks.wait(id)).status == 0
        await carina.tasks.delete(id)
        assert await out == b"through the container\n"


async def test_terminal(carina: World) -> None:
    """A process with a terminal sees one, of the size it was last given."""
    stdin, stdout = carina.directory / "stdin", carina.directory / "stdout"
    os.mkfifo(stdin)
    writer = os.open(stdin, os.O_RDWR | os.O_NONBLOCK)
    try:
        async with fifo_reader(stdout) as out:
            stdio = Stdio(stdin=str(stdin), stdout=str(stdout), terminal=True)
            id = await carina.run("sh", "-c", "read line; stty size; tty", stdio=stdio)
            await carina.tasks.resize_pty(id, 100, 40)
            os.write(writer, b"go\n")
            assert (await carina.tasks.wait(id)).status == 0
            assert (await carina.tasks.get(id)).stdio.terminal
            await carina.tasks.delete(id)
            shown = await out
            assert b"40 100\r\n/dev/" in shown
    finally:
        os.close(writer)


async def test_exec(carina: World) -> None:
    """A further process has its own status and output, and is deleted on its own."""
    id = await carina.run("sleep", "100")
    stdout = carina.directory / "exec-stdout"
    async with fifo_reader(stdout) as out:
        stdio = Stdio(stdout=str(stdout), stderr="/dev/null")
        await carina.tasks.exec(id, "e1", exec_spec("sh", "-c", "echo inside; exit 3"), stdio)
        with pytest.raises(AlreadyExists):
            await carina.tasks.exec(id, "e1", exec_spec("true"))
        waiting = asyncio.create_task(carina.tasks.wait(id, "e1"))
        pid = await carina.tasks.start(id, "e1")
        ended = await waiting
        assert (ended.status, ended.exec_id) == (3, "e1")
        state = await carina.tasks.get(id, "e1")
        assert (state.status, state.exec_id, state.pid) == (Status.STOPPED, "e1", pid)
        gone = await carina.tasks.delete(id, "e1")
        assert (gone.status, gone.pid, gone.exec_id) == (3, pid, "e1")
        assert await out == b"inside\n"
    with pytest.raises(NotFound):
        await carina.tasks.get(id, "e1")
    await _end(carina, id)
    expected = ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"]
    await carina.events.until("/tasks/delete", id)
    assert [topic.removeprefix("/tasks/") for topic in carina.events.topics(id)] == expected


async def _end(carina: World, id: str) -> None:
    with contextlib.suppress(NotFound):
        await carina.tasks.kill(id, signal.SIGKILL, all=True)
    await carina.tasks.wait(id)
    await carina.tasks.delete(id)


async def test_exec_that_cannot_be(carina: World) -> None:
    """Exec ids are validated, missing ones are not found, and a stopped task takes no more processes."""
    id = await carina.run("sleep", "1000")
    with pytest.raises(InvalidArgument):
        await carina.tasks.exec(id, "../e", exec_spec("true"))
    with pytest.raises(InvalidArgument):
        await carina.tasks.exec(id, "", exec_spec("true"))
    for call in (carina.tasks.start, carina.tasks.delete, carina.tasks.get, carina.tasks.wait):
        with pytest.raises(NotFound):
            await call(id, "absent")
    await carina.tasks.kill(id, signal.SIGKILL)
    await carina.tasks.wait(id)
    with pytest.raises(FailedPrecondition):
        await carina.tasks.exec(id, "late", exec_spec("true"))
    await carina.tasks.delete(id)


async def test_kill(carina: World) -> None:
    """A signal ends a process with 128 and its number; a second one finds nobody."""
    id = await carina.run("sleep", "100")
    await carina.tasks.kill(id, signal.SIGKILL)
    assert (await carina.tasks.wait(id)).status == 137
    with pytest.raises(NotFound):
        await carina.tasks.kill(id, signal.SIGKILL)
    await carina.tasks.delete(id)


async def test_running_is_not_deleted(carina: World) -> None:
    """A running task is not deleted, and goes on."""
    id = await carina.run("sleep", "100")
    with pytest.raises(
        FailedPrecondition, match=f"task {id} must be stopped before deletion|cannot delete a running process"
    ):
        await carina.tasks.delete(id)
    assert (await carina.tasks.get(id)).status is Status.RUNNING
    with pytest.raises(CarinaError):
        await carina.tasks.start(id)
    await _end(carina, id)


async def test_pause_resume(carina: World) -> None:
    """A paused task says so, and runs again when resumed."""
    id = await carina.run("sleep", "100")
    await carina.tasks.pause(id)
    assert (await carina.tasks.get(id)).status is Status.PAUSED
    await carina.tasks.resume(id)
    assert (await carina.tasks.get(id)).status is Status.RUNNING
    await _end(carina, id)
    await carina.events.until("/tasks/delete", id)
    assert {"/tasks/paused", "/tasks/resumed"} <= set(carina.events.topics(id))


async def test_pids_metrics_update(carina: World) -> None:
    """A running task tells its processes and metrics, and takes new limits."""
    id, other = await carina.run("sh", "-c", "sleep 100 & wait"), await carina.run("sleep", "100")
    pid = (await carina.tasks.get(id)).pid
    async with asyncio.timeout(30):
        while len(found := await carina.tasks.pids(id)) < 2:
            await asyncio.sleep(0.01)
    assert pid in [process.pid for process in found]
    metrics = await carina.tasks.metrics([f"id=={id}"])
    assert [metric.id for metric in metrics] == [id]
    assert metrics[0].data.type_url.endswith("Metrics")
    assert {metric.id for metric in await carina.tasks.metrics()} == {id, other}
    await carina.tasks.update(id, TypedValue(RESOURCES, b'{"pids": {"limit": 77}}'))
    limits = Path("/sys/fs/cgroup").glob(f"*/{carina.namespace}/{id}/pids.max")
    assert [path.read_text() for path in limits] == ["77\n"]
    assert {task.container_id for task in await carina.tasks.list()} == {id, other}
    await _end(carina, id)
    await _end(carina, other)


async def test_namespaces_are_separate(carina: World) -> None:
    """A task is not seen from another namespace."""
    id = await carina.run("sleep", "100")
    with context.within(namespace="carina-test-other"):
        assert await carina.tasks.list() == []
        with pytest.raises(NotFound):
            await carina.tasks.get(id)
    await _end(carina, id)


async def test_many_waits(carina: World) -> None:
    """Everyone who waits for a process gets its end."""
    id = await carina.run("sleep", "100")
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(carina.tasks.wait(id)) for _ in range(90)]
        await asyncio.sleep(0.05)
        await carina.tasks.kill(id, signal.SIGTERM)
        await carina.tasks.kill(id, signal.SIGKILL)
    assert {wait.result().status for wait in waits} == {137}
    await carina.tasks.delete(id)


async def test_created_twice(carina: World) -> None:
    """A container has one task at a time, also when two are asked for at once."""
    _only_ours(carina)
    id = carina.add("true")
    creations = (carina.tasks.create(id, rootfs=carina.mounts) for _ in range(3))
    results = await asyncio.gather(*creations, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["AlreadyExists", "AlreadyExists", "int"]
    await carina.tasks.start(id)
    await carina.tasks.wait(id)
    await carina.tasks.delete(id)
    await carina.tasks.create(id, rootfs=carina.mounts)
    await carina.tasks.delete(id)


async def test_missing(carina: World) -> None:
    """What isn't there is not found: the container, the runtime, the task."""
    _only_ours(carina)
    with pytest.raises(NotFound, match="container absent"):
        await carina.tasks.create("absent")
    id = carina.add("true", runtime="io.containerd.absent.v9")
    with pytest.raises(NotFound, match="containerd-shim-absent-v9"):
        await carina.tasks.create(id)
    id = carina.add("true", runtime="/nowhere/shim")
    with pytest.raises(NotFound, match="/nowhere/shim"):
        await carina.tasks.create(id)
    for call in (carina.tasks.start, carina.tasks.delete, carina.tasks.wait, carina.tasks.pids, carina.tasks.pause):
        with pytest.raises(NotFound, match="task absent: not found"):
            await call("absent")
    assert await carina.tasks.list() == []


async def test_failed_creation_leaves_nothing(carina: World) -> None:
    """A command that isn't there fails with the runtime's words, and leaves no bundle, shim, mount, task or event."""
    id = carina.add("/bin/absent")
    with pytest.raises(CarinaError, match=r"/bin/absent.*no such file"):
        await carina.tasks.create(id, rootfs=carina.mounts)
    with pytest.raises(NotFound):
        await carina.tasks.get(id)
    assert not carina.bundle(id).exists()
    await asyncio.sleep(0.1)
    # Ours stays for the namespace's next container.
    assert len(carina.shims()) == (carina.runtime == OWN)
    assert carina.events.topics(id) == []


async def test_invalid_spec(carina: World) -> None:
    """A record without a valid specification can't be run."""
    _only_ours(carina)
    id = carina.add("true")
    for text in (b"", b"[]", b"{", b"not json", b"[" * 100_000):
        carina.containers.records[id] = replace(carina.containers.records[id], spec=TypedValue("spec", text))
        with pytest.raises(InvalidArgument, match="spec"):
            await carina.tasks.create(id)
        assert not carina.bundle(id).exists()
