"""The container suite on ours, direct and over a socket, and on a real containerd; and what is behind ours."""

from collections.abc import Mapping
from typing import ClassVar

import pytest

from conformance.containers_suite import ContainerSuite, container
from support.metadata import Services, Stores


class TestLocal(ContainerSuite):
    @pytest.fixture
    def metadata(self, local_stores: Stores) -> Services:
        return local_stores


class TestRemote(ContainerSuite):
    @pytest.fixture
    def metadata(self, remote_stores: Stores) -> Services:
        return remote_stores


@pytest.mark.root
class TestContainerd(ContainerSuite):
    """containerd 1.6, where Debian's package has that."""

    differences: ClassVar[Mapping[str, str]] = {
        "test_sandbox_is_kept": "sandboxes came with 1.7",
        "test_an_extension_is_taken_away": "containerd keeps an empty extension",
    }

    @pytest.fixture
    def metadata(self, containerd_services: Services) -> Services:
        return containerd_services


async def test_the_snapshot_is_kept(local_stores: Stores) -> None:
    """A container states that it keeps its snapshot, until it is deleted."""
    await local_stores.containers.create(container())
    query = "SELECT source, destination, kind FROM edges"
    rows = await local_stores.records.read(lambda c: c.execute(query).fetchall())
    assert rows == [("containers/c", "snapshots/overlayfs/key", "target")]
    await local_stores.containers.delete("c")
    assert await local_stores.records.read(lambda c: c.execute(query).fetchall()) == []
