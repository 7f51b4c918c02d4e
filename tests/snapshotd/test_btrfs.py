"""The btrfs driver, on a file system of its own."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from carina.errors import InvalidArgument
from carina.linux import btrfs
from carina.linux.filesystem import filesystem_type
from carina.snapshots import Usage
from snapshotd.btrfs import Btrfs
from snapshotd.drivers import Unfit
from snapshotd.snapshotter import LocalSnapshotter, Settings, open_snapshotter
from support.content import directory
from support.volumes import volume

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def point() -> Iterator[Path]:
    with directory() as base, volume(base, "btrfs") as mounted:
        yield mounted


@pytest.fixture
def root(point: Path) -> Path:
    return point / uuid.uuid4().hex


@pytest.fixture
async def snapshotter(root: Path) -> AsyncIterator[LocalSnapshotter]:
    async with open_snapshotter(root, Btrfs(), Settings(durable=False)) as snapshotter:
        yield snapshotter


def test_another_file_system_is_named_and_skipped(tmp_path: Path) -> None:
    """Containerd's clients show a plugin whose error says "skip plugin" as one that this machine can't have."""
    with pytest.raises(Unfit, match=f"is on {filesystem_type(tmp_path)}, .* skip plugin"):
        Btrfs().check(tmp_path)


async def test_usage_is_what_a_snapshot_does_not_share(snapshotter: LocalSnapshotter) -> None:
    """The base counts all it has; a child what it added or changed, and nothing where it changed nothing."""
    (mount,) = await snapshotter.prepare("a")
    base = Path(mount.source)
    (base / "large").write_bytes(os.urandom(400_000))
    (base / "small").write_bytes(os.urandom(8192))
    os.link(base / "large", base / "again")
    await snapshotter.commit("base", "a")
    used = await snapshotter.usage("base")
    assert used.inodes == 3
    assert 400_000 < used.size < 500_000

    (mount,) = await snapshotter.prepare("b", "base")
    child = Path(mount.source)
    assert await snapshotter.usage("b") == Usage(size=0, inodes=0)
    (child / "small").write_bytes(os.urandom(8192))
    (child / "large").chmod(0o600)
    (child / "new").write_bytes(os.urandom(16384))
    await snapshotter.commit("child", "b")
    assert await snapshotter.usage("child") == Usage(size=8192 + 16384, inodes=4)
    assert (base / "large").stat().st_mode & 0o777 == 0o644
    assert await snapshotter.usage("base") == used


async def test_removal_frees_subvolumes_also_those_within(snapshotter: LocalSnapshotter, root: Path) -> None:
    """A container may make subvolumes in its own; a read-only view has none."""
    (mount,) = await snapshotter.prepare("a")
    await asyncio.to_thread(btrfs.create_subvolume, Path(mount.source) / "inner")
    (Path(mount.source) / "inner" / "file").touch()
    await snapshotter.prepare("b")
    for key in ("a", "b"):
        await snapshotter.remove(key)
    await snapshotter.cleanup()
    assert os.listdir(root / "snapshots") == []


async def test_what_a_crash_left_is_freed(root: Path) -> None:
    """A subvolume that was made and not recorded goes at the next start."""
    async with open_snapshotter(root, Btrfs(), Settings(durable=False)) as snapshotter:
        await snapshotter.prepare("a")
    for name in ("new-7-x", "9"):
        (root / "snapshots" / name).mkdir()
        await asyncio.to_thread(btrfs.create_subvolume, root / "snapshots" / name / "fs")
    async with open_snapshotter(root, Btrfs(), Settings(durable=False)) as snapshotter:
        await snapshotter.cleanup()
        assert os.listdir(root / "snapshots") == ["1"]


async def test_a_subvolume_keeps_its_parent(snapshotter: LocalSnapshotter) -> None:
    """It has no `rebase`, and a commit that asks for it changes nothing."""
    for key in ("a", "b"):
        await snapshotter.prepare(key)
    await snapshotter.commit("base", "a")
    with pytest.raises(InvalidArgument, match="can't have another"):
        await snapshotter.commit("child", "b", parent="base")
    assert (await snapshotter.stat("b")).parent == ""


def test_the_bytes_of_a_copy_that_shares_blocks_are_not_its_own(point: Path) -> None:
    """Until it is changed."""
    first, second = point / "first", point / "second"
    first.write_bytes(os.urandom(65536))
    with first.open("rb") as source, second.open("wb") as target:
        os.copy_file_range(source.fileno(), target.fileno(), 65536)
    os.sync()
    assert btrfs.exclusive_bytes(str(second)) == 0
    with second.open("r+b") as stream:
        stream.write(os.urandom(4096))
    os.sync()
    assert btrfs.exclusive_bytes(str(second)) == 4096
