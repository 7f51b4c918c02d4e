"""A deletion that comes late, when its caller has given up, takes away nothing that anybody was promised."""

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from carina import context
from carina.content.client import RemoteContentStore
from carina.digest import Digest
from carina.errors import AlreadyExists, CarinaError, DeadlineExceeded, NotFound
from carina.rpc.client import connect
from conformance.content_suite import fresh, get, put
from contentd.store import LocalContentStore
from support.content import directory
from support.snapshots import serving

ROUNDS = 2


@pytest.fixture
def process() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with directory() as path:
        arguments = ["-m", "contentd", "--root", str(path / "root"), "--state", str(path)]
        with serving(path / "contentd.sock", *arguments) as running:
            try:
                yield f"unix://{path}/contentd.sock", running
            finally:
                running.send_signal(signal.SIGCONT)


async def stopped(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    stat = Path(f"/proc/{process.pid}/stat")
    async with asyncio.timeout(30):
        while (await asyncio.to_thread(stat.read_text)).rpartition(")")[2].split()[0] != "T":
            await asyncio.sleep(0.01)


async def test_deadline_has_passed(tmp_path: Path) -> None:
    """A deletion whose deadline has passed when its turn comes does not happen."""
    async with LocalContentStore(tmp_path) as store:
        digest = await put(store, b"data")
        with context.deadline(-1), pytest.raises(DeadlineExceeded, match=digest):
            await store.delete(digest)
        assert await get(store, digest) == b"data"


async def test_given_up_before_its_turn(tmp_path: Path) -> None:
    """A deletion that is given up before its turn came does not happen."""
    async with LocalContentStore(tmp_path) as store:
        digest = await put(store, b"data")
        async with store.changing(digest):
            deletion = asyncio.create_task(store.delete(digest), name="deletion")
            await asyncio.sleep(0)
            deletion.cancel()
        with pytest.raises(asyncio.CancelledError):
            await deletion
        assert await get(store, digest) == b"data"


async def test_look_behind_a_deletion(tmp_path: Path) -> None:
    """Who asks for a blob is answered after the deletions that were asked for before."""
    async with LocalContentStore(tmp_path) as store:
        digest = await put(store, b"data")
        async with store.changing(digest):
            deletion = asyncio.create_task(store.delete(digest), name="deletion")
            await asyncio.sleep(0)
            asked = asyncio.create_task(store.info(digest), name="asked")
            await asyncio.sleep(0.05)
            assert not asked.done()
        with pytest.raises(NotFound):
            await asked
        await deletion


@pytest.mark.parametrize("how", ["deadline", "hang-up"])
@pytest.mark.parametrize("question", ["info", "write"])
async def test_stopped_store(process: tuple[str, subprocess.Popen[bytes]], how: str, question: str) -> None:
    """A blob that a store says it has after a deletion was given up stays, however late the deletion is read."""
    address, running = process
    for _ in range(ROUNDS):
        data = fresh()
        channel, late = connect(address), connect(address)
        store, deleter = RemoteContentStore(channel), RemoteContentStore(late)
        digest = await put(store, data)
        await deleter.info(digest)
        await stopped(running)
        await given_up(deleter.delete(digest), how)
        if how == "hang-up":
            late.close()
        ask = found(store, digest) if question == "info" else brought(store, data)
        asked = asyncio.create_task(ask, name="asked")
        await asyncio.sleep(0.05)
        running.send_signal(signal.SIGCONT)
        if await asked:
            await asyncio.sleep(0.05)
            assert await get(store, digest) == data
        late.close()
        channel.close()


async def given_up(deletion: object, how: str) -> None:
    if how == "deadline":
        with context.deadline(0.2), pytest.raises(CarinaError):
            await deletion  # type: ignore[misc]
        return
    waiting: asyncio.Task[None] = asyncio.create_task(deletion, name="deletion")  # type: ignore[arg-type]
    await asyncio.sleep(0.1)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting


async def found(store: RemoteContentStore, digest: Digest) -> bool:
    try:
        await store.info(digest)
    except NotFound:
        return False
    return True


async def brought(store: RemoteContentStore, data: bytes) -> bool:
    """Bring the bytes, unless the store has them: to be told so counts."""
    with contextlib.suppress(AlreadyExists):
        async with await store.writer("again", expected=Digest.of(data)) as writer:
            await writer.write(data)
            await writer.commit(expected=Digest.of(data))
    return True
