"""A back end that hangs costs whoever finds out, and then nobody until it answers again."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from carina import context
from carina.content import ContentStore, Status
from carina.content.client import RemoteContentStore
from carina.content.descriptors import DescriptorReader
from carina.content.server import ContentService
from carina.digest import Digest
from carina.errors import DeadlineExceeded, NotFound, Unavailable
from carina.rpc.client import connect
from carina.rpc.server import serve
from conformance.content_suite import get, put
from contentd.store import LocalContentStore
from metadatad.backends import Settings
from metadatad.breaker import Breaker
from metadatad.peers import Peer
from support.content import directory
from support.views import metadata


class Hanging(LocalContentStore):
    """A store that answers while its gate is open."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = asyncio.Event()
        self.reads = 0

    async def reader(self, digest: Digest) -> DescriptorReader:
        self.reads += 1
        await self.gate.wait()
        return await super().reader(digest)

    async def status(self, ref: str) -> Status:
        await self.gate.wait()
        return await super().status(ref)


@contextlib.asynccontextmanager
async def hanging(path: Path) -> AsyncIterator[Hanging]:
    async with Hanging(path / "contentd") as store:
        async with serve(f"unix://{path}/c.sock", [ContentService(store)], name="contentd", grace=0.1):
            yield store


async def test_a_hanging_back_end_is_waited_for_once() -> None:
    """Reads of many blobs at a back end that hangs: the first waits, the rest fail at once, and all is well again."""
    with directory() as path:
        async with hanging(path) as store, metadata(path, settings=Settings(answer_seconds=0.5)) as (address, *_):
            channel = connect(address)
            content = RemoteContentStore(channel)
            with context.within(namespace="one"):
                store.gate.set()
                digests = [await put(content, b"blob %d" % number) for number in range(20)]
                store.gate.clear()
                for digest in digests:
                    with pytest.raises(Unavailable, match="content back end content d"):
                        await get(content, digest)
                # An answer to a probe may have been on its way when the first read began, or a pause may have ended.
                assert store.reads <= 5
                store.gate.set()
                async with asyncio.timeout(30):
                    while await _unreadable(content, digests[0]):
                        await asyncio.sleep(0.05)
                assert [await get(content, digest) for digest in digests][7] == b"blob 7"
            channel.close()


async def _unreadable(content: ContentStore, digest: Digest) -> bool:
    try:
        await get(content, digest)
    except Unavailable:
        return True
    return False


def test_one_call_at_a_time_tries_again() -> None:
    """After the pause one call goes through, others still fail; its answer lets all through."""
    breaker = Breaker(1.0, pause=0.0)
    breaker.check("x", 60)
    breaker.unanswered(time.monotonic() - 2)
    breaker.check("x", 60)
    with pytest.raises(Unavailable, match="x does not answer since"):
        breaker.check("x", 60)
    breaker.answered()
    breaker.check("x", 60)
    assert not breaker.open


def test_one_late_answer_among_others_means_nothing() -> None:
    """A call without answer, while others were answered, does not make a back end one that hangs."""
    breaker = Breaker(1.0)
    begun = time.monotonic() - 5
    breaker.answered()
    breaker.unanswered(begun)
    assert not breaker.open


def test_impatient_callers_do_not_condemn_a_back_end() -> None:
    """Only silence as long as an answer may take counts, whatever limits callers have."""
    breaker, opened = Breaker(60.0), []
    breaker.on_open = lambda: opened.append(True)
    for _ in range(10):
        breaker.unanswered(time.monotonic() - 1)
    assert not breaker.open
    breaker.unanswered(time.monotonic() - 61)
    assert opened == [True]


async def test_a_refusal_is_an_answer() -> None:
    """An error that the back end itself gives closes the breaker; what a call of ours raises early is passed on."""
    peer = Peer(name="x", answer_seconds=5, work_seconds=5)
    peer.breaker.unanswered(time.monotonic() - 10)
    with pytest.raises(Unavailable):
        async with peer.answering():
            pytest.fail("it was called")
    with pytest.raises(NotFound):
        async with peer.probing(5):
            raise NotFound("y does not exist")
    assert not peer.breaker.open
    with pytest.raises(DeadlineExceeded):
        async with peer.answering():
            raise DeadlineExceeded("said by the back end")
