"""Streams between a client and a process: copied whole, without threads, and gone in the end."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from carina.client.stdio import Streams, streams

pytestmark = pytest.mark.root
"""The FIFOs are below /run."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield reading, writing
    for descriptor in (reading, writing):
        with contextlib.suppress(OSError):
            os.close(descriptor)


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Streams]:
    async with streams(tmp_path / "fifo", stdin=True) as running:
        yield running


async def nothing() -> None:
    """A shim that has nothing to close."""


def shim_end(path: str, mode: int) -> int:
    return os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC)


async def collect(descriptor: int) -> bytes:
    data = b""
    while True:
        with contextlib.suppress(BlockingIOError):
            got = os.read(descriptor, 65536)
            if not got:
                return data
            data += got
        await asyncio.sleep(0.001)


async def test_input_arrives_whole(made: Streams, pipe: tuple[int, int]) -> None:
    """More than a FIFO holds goes through in order, then the shim is told, then its end closes."""
    reading, writing = pipe
    data = os.urandom(300_000)
    end = shim_end(made.stdio.stdin, os.O_RDONLY)
    told: list[bool] = []

    async def close() -> None:
        told.append(True)

    async def feed() -> None:
        rest = data
        while rest:
            with contextlib.suppress(BlockingIOError):
                rest = rest[os.write(writing, rest) :]
            await asyncio.sleep(0)
        os.close(writing)

    try:
        made.copy_input(reading, close)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(feed())
            collecting = group.create_task(collect(end))
        assert collecting.result() == data
        assert told == [True]
    finally:
        os.close(end)


async def test_input_that_is_no_pipe(made: Streams) -> None:
    """/dev/null, which can't be waited for, is the end of input at once."""
    end = shim_end(made.stdio.stdin, os.O_RDONLY)
    null = os.open(os.devnull, os.O_RDONLY | os.O_NONBLOCK)
    try:
        made.copy_input(null, nothing)
        async with asyncio.timeout(30):
            assert await collect(end) == b""
    finally:
        os.close(null)
        os.close(end)


async def test_a_slow_reader_gets_everything(made: Streams, pipe: tuple[int, int]) -> None:
    """Our reader may pause for longer than draining waits for silence: nothing is given up."""
    reading, writing = pipe
    end = shim_end(made.stdio.stdout, os.O_WRONLY)
    made.copy_output({"stdout": writing})
    data = os.urandom(200_000)
    rest = data
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for _ in range(50):
            with contextlib.suppress(BlockingIOError):
                rest = rest[os.write(end, rest) :]
            await asyncio.sleep(0.001)
        os.close(end)
        sent = data[: len(data) - len(rest)]
        assert len(sent) > 65536, "both pipes are full"
        draining = group.create_task(made.drained(seconds=0.05))
        await asyncio.sleep(0.3)
        assert not draining.done()

        async def read() -> bytes:
            got = b""
            while not draining.done() or len(got) < len(sent):
                with contextlib.suppress(BlockingIOError):
                    got += os.read(reading, 65536)
                await asyncio.sleep(0.001)
            return got

        reading_all = group.create_task(read())
    assert reading_all.result() == sent


async def test_what_cannot_be_written_ends_the_waiting(made: Streams, pipe: tuple[int, int]) -> None:
    """Work is cancelled, and the error raised, when output has nowhere to go any more."""
    reading, writing = pipe
    os.close(reading)
    end = shim_end(made.stdio.stdout, os.O_WRONLY)
    cancelled: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    try:
        made.copy_output({"stdout": writing})
        os.write(end, b"text")
        with pytest.raises(BrokenPipeError):
            await made.attend(work())
        assert cancelled == [True]
    finally:
        os.close(end)


async def test_a_child_that_keeps_the_output_open_is_not_waited_for(made: Streams, pipe: tuple[int, int]) -> None:
    """Draining ends when nothing has come for a while, although the FIFO is held open."""
    end = shim_end(made.stdio.stdout, os.O_WRONLY)
    try:
        made.copy_output({"stdout": pipe[1]})
        os.write(end, b"last words")
        async with asyncio.timeout(30):
            await made.drained(seconds=0.1)
        assert os.read(pipe[0], 100) == b"last words"
    finally:
        os.close(end)


async def test_nothing_stays(pipe: tuple[int, int], tmp_path: Path) -> None:
    """After the block, cut off or not, neither FIFO nor directory is left, and only root could reach them."""
    async with streams(tmp_path / "fifo", stdin=True) as made:
        directory = Path(made.stdio.stdout).parent
        assert directory.stat().st_mode & 0o777 == 0o700
        assert Path(made.stdio.stdout).stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "fifo").stat().st_mode & 0o777 == 0o700
        assert directory.parent == tmp_path / "fifo"
        made.copy_output({"stdout": pipe[1]})
        made.copy_input(pipe[0], nothing)
    assert not directory.exists()
