"""The snapshotter suite on the metadata service's view, over sockets on both sides."""

from collections.abc import AsyncIterator

import pytest

from carina import context
from carina.snapshots import Snapshotter
from conformance.snapshots_suite import SnapshotterSuite
from snapshotd.overlay import Overlay
from support.content import directory
from support.views import view


class TestNamespaced(SnapshotterSuite):
    layers = 16

    @pytest.fixture
    async def snapshotter(self) -> AsyncIterator[Snapshotter]:
        with directory() as path:
            async with view(path) as service:
                with context.within(namespace="one"):
                    yield service.snapshotter


class TestNamespacedOverlay(SnapshotterSuite):
    renames_directories = False
    rebases = True
    layers = 16

    @pytest.fixture
    async def snapshotter(self) -> AsyncIterator[Snapshotter]:
        with directory() as path:
            async with view(path, driver=Overlay()) as service:
                with context.within(namespace="one"):
                    yield service.snapshotter
