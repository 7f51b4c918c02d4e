"""Workers are forked from one process, and never outlive who asked for them."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carina.errors import Internal
from carina.layer.worker import NAME
from carina.layer.workers import Workers

pytestmark = pytest.mark.root
NURSERY = b"carina.layer.nursery"


def _processes(name: str = "") -> list[int]:
    """Processes of ours that are the nursery or come from it, or only those of a name."""
    found = []
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        ours = f"main(int(sys.argv[1]))\0{os.getpid()}\0".encode() in command
        if NURSERY in command and ours and "State:\tZ" not in status and (not name or f"Name:\t{name}\n" in status):
            found.append(pid)
    return found


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.01)


def _request(root: Path) -> bytes:
    """One that takes an hour with what `endless` gives."""
    place = {"form": "overlay", "root": str(root), "lowers": [], "user_attributes": False}
    limits = {"bytes": 0, "entries": 0, "ratio": 0, "ratio_from": 0, "memory": 0}
    return json.dumps({"verb": "apply", "blob": 3, "kind": "plain", "limits": limits, "sync": False, **place}).encode()


@pytest.fixture
def endless() -> Iterator[int]:
    """A blob of a terabyte of zeros, all of which a worker reads."""
    blob = os.memfd_create("endless", os.MFD_CLOEXEC)
    os.ftruncate(blob, 1 << 40)
    yield blob
    os.close(blob)


async def test_one_process_is_loaded_for_all(tmp_path: Path) -> None:
    """Workers come from one process, one after the other and side by side, and it goes when it is not wanted."""
    async with Workers() as workers:
        workers.expect()
        await _until(lambda: len(_processes()) == 1)
        nursery = _processes()
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(workers.run(b"not json")) for _ in range(5)]
        after = _processes()

    assert nursery == after
    assert len(nursery) == 1
    assert {json.loads(task.result().output)["error"] for task in asked} == {"Internal"}
    assert _processes() == []


async def test_it_ends_when_idle_and_comes_again() -> None:
    """The process that workers come from does not stay when there is nothing to do, and is started when there is."""
    async with Workers(idle_seconds=0.05) as workers:
        await workers.run(b"")
        await _until(lambda: not _processes())
        answer = await workers.run(b"")

    assert b"error" in answer.output


async def test_a_killed_one_is_replaced() -> None:
    """Where the process that workers come from was killed, the next worker comes from another."""
    async with Workers() as workers:
        await workers.run(b"")
        (nursery,) = _processes()
        os.kill(nursery, signal.SIGKILL)
        answer = await workers.run(b"")
        again = _processes()

    assert b"error" in answer.output
    assert len(again) == 1
    assert again != [nursery]


async def test_who_gives_up_leaves_no_worker(tmp_path: Path, endless: int) -> None:
    """A worker that nobody waits for is gone, with its child, when the cancellation is delivered."""
    async with Workers() as workers:
        task = asyncio.create_task(workers.run(_request(tmp_path), endless), name="run")
        await _until(lambda: len(_processes(NAME)) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(_processes, NAME) == []


async def test_workers_end_with_the_process_they_come_from(tmp_path: Path, endless: int) -> None:
    """Workers whose nursery is killed end at once, and whoever waits for one is told."""
    async with Workers() as workers:
        task = asyncio.create_task(workers.run(_request(tmp_path), endless), name="run")
        await _until(lambda: len(_processes(NAME)) == 2)
        (nursery,) = set(_processes()) - set(_processes(NAME))
        os.kill(nursery, signal.SIGKILL)
        async with asyncio.timeout(30):
            answer = await task

    assert answer.output == b""
    assert await asyncio.to_thread(_processes) == []


async def test_a_worker_gets_its_own_descriptors_and_no_others(tmp_path: Path, endless: int) -> None:
    """What else the caller and the process that workers come from have open does not reach a worker."""
    secret = os.open(tmp_path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(secret, True)
    try:
        async with Workers() as workers:
            task = asyncio.create_task(workers.run(_request(tmp_path), endless), name="run")
            await _until(lambda: len(_processes(NAME)) == 2)
            seen = {os.readlink(entry).partition(":")[0] for pid in _processes(NAME) for entry in _descriptors(pid)}
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    finally:
        os.close(secret)

    assert {path for path in seen if not path.startswith(("/memfd", "pipe", "socket"))} <= {
        "/sys/upper"
    }  # its root, in its own mount namespace


def _descriptors(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/fd").iterdir())


async def test_what_can_not_be_started_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no interpreter can be started, the sentence says so."""
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    async with Workers() as workers:
        with pytest.raises(Internal, match="no process can be started for a layer: no such file or directory"):
            await workers.run(b"")
