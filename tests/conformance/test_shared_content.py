"""The suites of sharing and leases on the metadata service's view and on a real containerd, under both policies."""

import contextlib
import itertools
import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from carina.content.client import RemoteContentStore
from carina.leases.client import RemoteLeaseManager
from carina.namespaces.client import RemoteNamespaceStore
from carina.rpc.client import connect
from conformance.sharing_suite import IsolatedSuite, Shared, SharedSuite
from support.content import containerd, directory
from support.views import view

COUNT = itertools.count()


@contextlib.asynccontextmanager
async def behind(address: str) -> AsyncIterator[Shared]:
    channel, number = connect(address), next(COUNT)
    try:
        yield Shared(
            content=RemoteContentStore(channel),
            leases=RemoteLeaseManager(channel),
            namespaces=RemoteNamespaceStore(channel),
            one=f"one-{number}",
            two=f"two-{number}",
        )
    finally:
        channel.close()


class TestShared(SharedSuite):
    @pytest.fixture
    async def store(self) -> AsyncIterator[Shared]:
        with directory() as path:
            async with view(path) as service, behind(service.address) as store:
                yield store


class TestIsolated(IsolatedSuite):
    @pytest.fixture
    async def store(self) -> AsyncIterator[Shared]:
        with directory() as path:
            async with view(path, shared=False) as service, behind(service.address) as store:
                yield store


@pytest.fixture(scope="module")
def isolating_containerd() -> Iterator[str]:
    if shutil.which("containerd") is None:
        pytest.skip("needs containerd")
    with directory() as path, containerd(path, sharing="isolated") as address:
        yield address


@pytest.mark.root
class TestContainerdShared(SharedSuite):
    @pytest.fixture
    async def store(self, containerd_address: str) -> AsyncIterator[Shared]:
        async with behind(containerd_address) as store:
            yield store


@pytest.mark.root
class TestContainerdIsolated(IsolatedSuite):
    @pytest.mark.xfail(reason="containerd 1.6 does not heed the label", strict=True)
    async def test_shareable_namespace(self, store: Shared) -> None:
        """As in the suite."""
        await super().test_shareable_namespace(store)

    @pytest.fixture
    async def store(self, isolating_containerd: str) -> AsyncIterator[Shared]:
        async with behind(isolating_containerd) as store:
            yield store
