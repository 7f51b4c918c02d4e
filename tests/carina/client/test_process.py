"""Processes whose services are objects of the test: ends, outages, and output that goes on."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from carina.client.client import Client
from carina.client.pipes import Pipes, pipes
from carina.client.process import Process
from carina.errors import NotFound, Unavailable
from carina.tasks import Exit, TaskService


class Tasks:
    """One process that ends when the test says so, and a service that is away for the first calls."""

    def __init__(self, away: int = 0) -> None:
        self.away = away
        self.ended = asyncio.Event()
        self.gone = False

    async def wait(self, container_id: str, exec_id: str = "") -> Exit:
        if self.away:
            self.away -= 1
            raise Unavailable("taskd is away")
        if self.gone:
            raise NotFound(f"task {container_id}: not found")
        await self.ended.wait()
        return Exit(pid=7, status=3)

    async def close_io(self, container_id: str, *, exec_id: str = "", stdin: bool = True) -> None:
        pass


def made(tasks: Tasks) -> Process:
    return Process(Client(tasks=cast(TaskService, tasks)), "c")


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[Pipes]:
    running = await pipes(tmp_path / "fifo", ("stdin", "stdout", "stderr"))
    yield running
    await running.close()


def writer(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)


async def test_waiting_passes_over_an_outage() -> None:
    """Services that are restarted while a process runs cost nothing but time; the answer is remembered."""
    tasks = Tasks(away=2)
    process = made(tasks)
    tasks.ended.set()
    assert (await process.wait()).status == 3
    tasks.gone = True
    assert (await process.wait()).status == 3


async def test_a_failure_is_one_error() -> None:
    """What goes wrong while a process is talked to is raised as it is, not as a group."""
    tasks = Tasks()
    tasks.gone = True
    with pytest.raises(NotFound, match="task c: not found"):
        await made(tasks).communicate()


async def test_everything_printed_before_the_end_is_gathered(ends: Pipes) -> None:
    """Also what is still in one pipe when the other has ended and the process, too."""
    tasks = Tasks()
    process = made(tasks)
    out, err = writer(ends.stdio.stdout), writer(ends.stdio.stderr)
    await process.connect_output(ends)
    tasks.ended.set()
    os.close(out)
    talking = asyncio.create_task(process.communicate())
    for _ in range(20):
        await asyncio.sleep(0.005)
        os.write(err, b"more ")
    os.close(err)
    assert await talking == (b"", b"more " * 20)


async def test_a_child_that_keeps_the_output_open_is_not_waited_for(ends: Pipes) -> None:
    """After the process's end, output that has nothing more to say is taken for complete."""
    tasks = Tasks()
    process = made(tasks)
    out, err = writer(ends.stdio.stdout), writer(ends.stdio.stderr)
    await process.connect_output(ends)
    os.write(out, b"said")
    tasks.ended.set()
    try:
        assert await process.communicate(quiet=0.05) == (b"said", b"")
    finally:
        os.close(out)
        os.close(err)


async def test_the_input_is_written_and_closed(ends: Pipes) -> None:
    """Data of more than a pipe holds reaches a process that reads it slowly."""
    tasks = Tasks()
    process = made(tasks)
    reading = os.open(ends.stdio.stdin, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    outs: list[Any] = [writer(ends.stdio.stdout), writer(ends.stdio.stderr)]
    await process.connect_output(ends)
    await process.connect_input(ends)
    data = os.urandom(2_000_000)

    def consume() -> bytes:
        os.set_blocking(reading, True)
        got = b""
        while piece := os.read(reading, 65536):
            got += piece
        os.close(reading)
        return got

    async def shim() -> bytes:
        got = await asyncio.to_thread(consume)
        for one in outs:
            os.close(one)
        tasks.ended.set()
        return got

    consuming = asyncio.create_task(shim())
    assert await process.communicate(data) == (b"", b"")
    assert await consuming == data
