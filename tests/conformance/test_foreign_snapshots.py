"""The snapshotter suite on a real containerd's snapshotters, over its socket: the reference that the suite states."""

import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from carina import context
from carina.errors import CarinaError
from carina.rpc.client import connect
from carina.snapshots import Snapshotter
from carina.snapshots.client import RemoteSnapshotter
from conformance.snapshots_suite import SnapshotterSuite
from support.content import containerd, directory

pytestmark = pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with directory() as path, containerd(path) as address:
        yield address


@pytest.mark.system
class ContainerdSuite(SnapshotterSuite):
    """A containerd before 2.2 reads no parent at commit; some errors of its libraries have no class."""

    name_there: str
    names_parents = False
    malformed = CarinaError

    @pytest.fixture
    async def snapshotter(self, address: str) -> AsyncIterator[Snapshotter]:
        channel = connect(address)
        with context.within(namespace="suite"):
            yield RemoteSnapshotter(channel, self.name_there)
        channel.close()


class TestContainerdOverlay(ContainerdSuite):
    name_there = "overlayfs"
    renames_directories = False
    keeps_root_modes = False
    layers = 32


class TestContainerdNative(ContainerdSuite):
    name_there = "native"
    not_active = CarinaError
    layers = 16
