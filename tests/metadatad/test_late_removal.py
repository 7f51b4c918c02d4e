"""The content back end stopped while it is to remove a blob, and the blob taken by another namespace meanwhile."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from carina import context
from carina.content.client import RemoteContentStore
from carina.digest import Digest
from carina.errors import AlreadyExists, CarinaError, Unavailable
from carina.gc.client import RemoteCollector
from carina.rpc.client import connect
from conformance.content_suite import fresh, get, put
from metadatad.backends import Settings
from support.content import directory
from support.snapshots import serving
from support.views import metadata

ROOT = {"containerd.io/gc.root": "x"}


@pytest.fixture
def path() -> Iterator[Path]:
    with directory() as path:
        yield path


@pytest.fixture
async def address(path: Path) -> AsyncIterator[str]:
    settings = Settings(answer_seconds=0.5, work_seconds=0.5)
    async with metadata(path, settings=settings) as (address, *_):
        yield address


async def take(store: RemoteContentStore, data: bytes) -> None:
    """Take the blob, by its digest alone where that is enough, as soon as the back end answers."""
    async with asyncio.timeout(30):
        while True:
            try:
                async with await store.writer("take", expected=Digest.of(data)) as writer:
                    await writer.write(data[writer.status.offset :])
                    await writer.commit(expected=Digest.of(data), labels=ROOT)
            except AlreadyExists:
                return
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return


async def test_blob_is_taken_while_its_removal_hangs(path: Path, address: str) -> None:
    """A removal that the back end reads only after it was given up does not take the blob from whoever has it now."""
    arguments = ["-m", "contentd", "--root", str(path / "root"), "--state", str(path)]
    with serving(path / "contentd.sock", *arguments) as contentd:
        (path / "c.sock").symlink_to(path / "contentd.sock")
        channel = connect(address)
        content, collector = RemoteContentStore(channel), RemoteCollector(channel)
        data = fresh()
        for turn in range(2):
            with context.within(namespace=f"before-{turn}"):
                digest = await put(content, data, ROOT)
                await content.delete(digest)
            contentd.send_signal(signal.SIGSTOP)
            try:
                removal = asyncio.create_task(collector.run(sync=True), name="removal")
                await asyncio.sleep(1.0)
                with context.within(namespace=f"after-{turn}"):
                    taking = asyncio.create_task(take(content, data), name="taking")
                    await asyncio.sleep(0.1)
            finally:
                contentd.send_signal(signal.SIGCONT)
            await taking
            with contextlib.suppress(CarinaError):
                await removal
            with context.within(namespace=f"after-{turn}"):
                assert await get(content, digest) == data
                await collector.run(sync=True)
                assert await get(content, digest) == data
                await content.delete(digest)
        channel.close()
