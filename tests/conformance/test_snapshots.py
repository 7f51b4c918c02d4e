"""The snapshotter suite on every implementation: in this process, over a socket, and as a plugin."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from carina.rpc.client import connect
from carina.snapshots import Snapshotter
from carina.snapshots.client import RemoteSnapshotter
from conformance.snapshots_suite import SnapshotterSuite
from snapshotd.btrfs import Btrfs
from snapshotd.drivers import Driver
from snapshotd.native import Native
from snapshotd.overlay import Overlay
from snapshotd.snapshotter import Settings, open_snapshotter
from support.content import directory
from support.snapshots import demo, snapshotd
from support.volumes import volume


@contextlib.asynccontextmanager
async def remote(socket: Path) -> AsyncIterator[Snapshotter]:
    channel = connect(f"unix://{socket}")
    try:
        yield RemoteSnapshotter(channel)
    finally:
        channel.close()


@contextlib.asynccontextmanager
async def local(root: Path, driver: Driver) -> AsyncIterator[Snapshotter]:
    async with open_snapshotter(root, driver, Settings(durable=False)) as snapshotter:
        freeing = asyncio.create_task(snapshotter.run())
        try:
            yield snapshotter
        finally:
            freeing.cancel()
            await asyncio.wait([freeing])


@pytest.fixture(scope="module")
def overlay_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("overlayfs")
    with snapshotd(base):
        yield base / "snapshotd-overlayfs.sock"


@pytest.fixture(scope="module")
def native_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("native")
    with snapshotd(base, "native"):
        yield base / "snapshotd-native.sock"


@pytest.fixture(scope="module")
def demo_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("demo")
    with demo(base):
        yield base / "demo.sock"


@pytest.fixture(scope="module")
def btrfs() -> Iterator[Path]:
    with directory() as base, volume(base, "btrfs") as point:
        yield point


class TestOverlay(SnapshotterSuite):
    renames_directories = False
    rebases = True

    @pytest.fixture
    async def snapshotter(self, tmp_path: Path) -> AsyncIterator[Snapshotter]:
        async with local(tmp_path / "root", Overlay()) as snapshotter:
            yield snapshotter


class TestBtrfs(SnapshotterSuite):
    layers = 32

    @pytest.fixture
    async def snapshotter(self, btrfs: Path) -> AsyncIterator[Snapshotter]:
        async with local(btrfs / uuid.uuid4().hex, Btrfs()) as snapshotter:
            yield snapshotter


class TestNative(SnapshotterSuite):
    layers = 32

    @pytest.fixture
    async def snapshotter(self, tmp_path: Path) -> AsyncIterator[Snapshotter]:
        async with local(tmp_path / "root", Native()) as snapshotter:
            yield snapshotter


class TestOverlayOverSocket(SnapshotterSuite):
    renames_directories = False
    rebases = True

    @pytest.fixture
    async def snapshotter(self, overlay_daemon: Path) -> AsyncIterator[Snapshotter]:
        async with remote(overlay_daemon) as snapshotter:
            yield snapshotter


class TestNativeOverSocket(SnapshotterSuite):
    layers = 16

    @pytest.fixture
    async def snapshotter(self, native_daemon: Path) -> AsyncIterator[Snapshotter]:
        async with remote(native_daemon) as snapshotter:
            yield snapshotter


class TestDemoPlugin(SnapshotterSuite):
    layers = 32

    @pytest.fixture
    async def snapshotter(self, demo_daemon: Path) -> AsyncIterator[Snapshotter]:
        async with remote(demo_daemon) as snapshotter:
            yield snapshotter
