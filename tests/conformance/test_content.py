"""The content suite on our store in this process, behind a socket, and on a real containerd's store as a peer."""

import itertools
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from carina import context
from carina.content import ContentStore
from carina.content.client import RemoteContentStore
from carina.errors import Unimplemented
from carina.rpc.client import connect
from conformance.content_suite import ContentSuite, LaneSuite, put
from contentd.store import LocalContentStore
from support.content import containerd, directory, remote

NAMESPACES = itertools.count()


class TestLocal(ContentSuite, LaneSuite):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[ContentStore]:
        async with LocalContentStore(tmp_path / "content") as store:
            yield store


class TestRemote(ContentSuite, LaneSuite):
    @pytest.fixture
    async def store(self) -> AsyncIterator[ContentStore]:
        with directory() as path:
            async with remote(path) as store:
                yield store

    async def test_peer_without_lane(self) -> None:
        """Where a peer has no lane, the store says so, and everything else works."""
        with directory() as path:
            async with remote(path, lane=False) as store:
                digest = await put(store, b"data")
                with pytest.raises(Unimplemented):
                    await store.open_blob(digest)
                with pytest.raises(Unimplemented):
                    await store.open_ingest("ref")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A containerd that all tests share, each in a namespace of its own."""
    with directory() as path, containerd(path) as address:
        yield address


@pytest.mark.root
@pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd")
class TestContainerd(ContentSuite):
    """The client on somebody else's implementation; where that promises less, it says so."""

    stores_sha512 = False
    restarts_on_other_total = False
    shows_expected = False
    filters_sizes = False

    @pytest.fixture
    async def store(self, address: str) -> AsyncIterator[ContentStore]:
        channel = connect(address)
        with context.within(namespace=f"test-{next(NAMESPACES)}"):
            yield RemoteContentStore(channel)
        channel.close()
