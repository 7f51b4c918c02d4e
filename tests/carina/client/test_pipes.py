"""FIFOs as asyncio's streams, on both loops."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from carina.client.pipes import Pipes, pipes


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Pipes]:
    running = await pipes(tmp_path / "fifo", ("stdin", "stdout", "stderr"))
    yield running
    await running.close()
    assert os.listdir(tmp_path / "fifo") == []


def process_end(path: str, mode: int) -> int:
    return os.open(path, mode | os.O_CLOEXEC)


async def test_output_arrives_whole(made: Pipes) -> None:
    """More than a pipe and a stream hold is read in order, and ends when the process closes it."""
    data = os.urandom(5_000_000)
    reader = await made.output("stdout")

    def process() -> None:
        with open(process_end(made.stdio.stdout, os.O_WRONLY), "wb") as stream:
            stream.write(data)

    writing = asyncio.create_task(asyncio.to_thread(process))
    assert await reader.read() == data
    await writing


async def test_what_nobody_reads_holds_the_process_up(made: Pipes) -> None:
    """A stream takes as much as its limit, and no more, until it is read."""
    reader = await made.output("stdout")
    end = process_end(made.stdio.stdout, os.O_WRONLY | os.O_NONBLOCK)
    written, idle = 0, 0
    while idle < 20:
        try:
            written += os.write(end, bytes(65536))
            idle = 0
        except BlockingIOError:
            idle += 1
        await asyncio.sleep(0.005)
    assert written < 8 << 20
    os.close(end)
    assert len(await reader.read()) == written


async def test_input_is_closed_after_everything_is_written(made: Pipes) -> None:
    """The shim is told when all is in the pipe; the reader then has it whole, and its end."""
    data = os.urandom(3_000_000)
    told: list[int] = []
    end = process_end(made.stdio.stdin, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(end, True)

    def process() -> bytes:
        got = b""
        while piece := os.read(end, 1 << 20):
            got += piece
        os.close(end)
        return got

    async def close() -> None:
        told.append(1)

    reading = asyncio.create_task(asyncio.to_thread(process))
    writer = await made.input(close)
    writer.write(data)
    await writer.drain()
    assert told == []
    writer.close()
    await writer.wait_closed()
    assert told == [1]
    assert await reading == data


async def test_closing_ends_every_stream(made: Pipes) -> None:
    """Readers come to an end, and a writer that the process never read from is let go."""

    async def close() -> None:
        await asyncio.Event().wait()

    reader = await made.output("stdout")
    writer = await made.input(close)
    writer.write(bytes(5_000_000))
    waiting = asyncio.create_task(reader.read())
    await asyncio.sleep(0.01)
    await made.close()
    assert await asyncio.wait_for(waiting, 10) == b""
