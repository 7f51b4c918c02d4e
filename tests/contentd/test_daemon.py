"""contentd as a process: killed at any moment, restarted, verified."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from carina.content.client import RemoteContentStore
from carina.digest import Digest
from carina.errors import AlreadyExists, CarinaError, NotFound, Unavailable
from carina.rpc.client import connect
from contentd.__main__ import main
from contentd.store import LocalContentStore
from support.content import directory

SIZE = 400_000


class Process:
    """A contentd in a directory of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = path / "root" / "contentd"
        self.address = f"unix://{path}/contentd.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "contentd", "--root", str(self.path / "root"), "--state", str(self.path)]
        with (self.path / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        limit = time.monotonic() + 10
        while not self._answers():
            assert self._process.poll() is None, (self.path / "log").read_text()
            assert time.monotonic() < limit, (self.path / "log").read_text()
            time.sleep(0.02)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as peer:
            return peer.connect_ex(str(self.path / "contentd.sock")) == 0

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        return process.wait(15)


@pytest.fixture
def contentd() -> Iterator[Process]:
    with directory() as path:
        process = Process(path)
        process.start()
        yield process
        process.stop(signal.SIGKILL)


@pytest.mark.system
async def test_killed_while_writing(contentd: Process) -> None:
    """Whenever contentd is killed: every blob that was acknowledged is there and whole, every ingest is resumed."""
    acknowledged: dict[Digest, bytes] = {}
    generator = random.Random(7)
    for _ in range(4):
        channel = connect(contentd.address)
        store = RemoteContentStore(channel)
        writing = [
            asyncio.create_task(_keep_writing(store, f"writer-{i}", acknowledged, lane=i % 2 == 1)) for i in range(4)
        ]
        before = len(acknowledged)
        async with asyncio.timeout(30):
            while len(acknowledged) == before:
                await asyncio.sleep(0.01)
        await asyncio.sleep(generator.uniform(0.05, 0.4))
        await asyncio.to_thread(contentd.stop, signal.SIGKILL)
        await asyncio.gather(*writing)
        channel.close()
        await asyncio.to_thread(contentd.start)
    channel = connect(contentd.address)
    store = RemoteContentStore(channel)
    for digest, data in acknowledged.items():
        async with await store.reader(digest) as reader:
            assert await reader.read(0, reader.size) == data
    for status in await store.statuses():
        data = _bytes_of(status.ref)
        async with await store.writer(status.ref, total=SIZE) as writer:
            await writer.write(data[writer.status.offset :])
            assert await writer.commit(expected=Digest.of(data)) == Digest.of(data)
    assert await store.statuses() == []
    channel.close()


def _bytes_of(ref: str) -> bytes:
    return random.Random(ref).randbytes(SIZE)


async def _keep_writing(store: RemoteContentStore, name: str, acknowledged: dict[Digest, bytes], *, lane: bool) -> None:
    number = 0
    while True:
        ref = f"{name}-{os.urandom(4).hex()}-{number}"
        number += 1
        data = _bytes_of(ref)
        try:
            if lane:
                pipe, _ = await store.open_ingest(ref, total=SIZE)
                try:
                    await asyncio.to_thread(_pour, pipe, data)
                finally:
                    os.close(pipe)
            async with await store.writer(ref, total=SIZE) as writer:
                for start in range(writer.status.offset, SIZE, 50_000):
                    await writer.write(data[start : start + 50_000])
                digest = await writer.commit(size=SIZE)
            acknowledged[digest] = data
        except (CarinaError, BrokenPipeError):
            return


def _pour(pipe: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(pipe, view) :]


@pytest.mark.system
async def test_stopped_and_started(contentd: Process) -> None:
    """SIGTERM ends contentd with status 0 and without its sockets; a client goes on with the next process."""
    channel = connect(contentd.address)
    store = RemoteContentStore(channel)
    async with await store.writer("ref") as writer:
        await writer.write(b"data")
        digest = await writer.commit()
    assert await asyncio.to_thread(contentd.stop) == 0
    assert {path.name for path in contentd.path.iterdir()} == {"root", "log"}
    with pytest.raises(Unavailable):
        await store.info(digest)
    await asyncio.to_thread(contentd.start)
    assert (await store.info(digest)).size == 4
    channel.close()


@pytest.mark.parametrize("quarantine", [False, True])
async def test_verify(tmp_path: Path, quarantine: bool) -> None:
    """`verify` prints the damaged blobs, exits with 1 and moves them away if it is told to; whole ones stay."""
    digests = []
    async with LocalContentStore(tmp_path / "contentd") as store:
        for data in (b"whole", b"damaged"):
            async with await store.writer("ref") as writer:
                await writer.write(data)
                digests.append(await writer.commit(labels={"a": "b"}))
    whole, damaged = digests

    def verify() -> tuple[int, str]:
        options = ["--root", str(tmp_path), "--state", str(tmp_path / "s"), "verify"]
        done = CliRunner().invoke(main, options + ["--quarantine"] * quarantine)
        return done.exit_code, done.output

    assert await asyncio.to_thread(verify) == (0, "")
    path = tmp_path / "contentd" / "blobs" / "sha256" / damaged.hex
    path.chmod(0o600)
    path.write_bytes(b"DAMAGED")
    assert await asyncio.to_thread(verify) == (1, f"{damaged}\tits bytes are {Digest.of(b'DAMAGED')}\n")
    async with LocalContentStore(tmp_path / "contentd") as store:
        assert (await store.info(whole)).labels == {"a": "b"}
        if not quarantine:
            with pytest.raises(AlreadyExists):
                await store.writer("again", expected=damaged)
            return
        with pytest.raises(NotFound):
            await store.info(damaged)
        (aside,) = (tmp_path / "contentd" / "quarantine").iterdir()
        assert aside.name.startswith(f"sha256-{damaged.hex}-")
        assert aside.read_bytes() == b"DAMAGED"
        async with await store.writer("again", expected=damaged) as writer:
            await writer.write(b"damaged")
            assert await writer.commit() == damaged
