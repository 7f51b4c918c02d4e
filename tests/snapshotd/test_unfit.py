"""File systems that lack what a snapshotter needs, and such that are full."""

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from carina.errors import FailedPrecondition, NotFound, ResourceExhausted
from carina.introspection.client import RemoteIntrospection
from carina.linux.mount import mounted
from carina.mount import Mount
from carina.rpc.client import connect
from carina.snapshots import Snapshotter
from carina.snapshots.client import RemoteSnapshotter
from snapshotd.drivers import Driver, Unfit
from snapshotd.native import Native
from snapshotd.overlay import Overlay
from snapshotd.snapshotter import Settings, open_snapshotter
from support.content import directory
from support.snapshots import snapshotd
from support.volumes import volume

pytestmark = pytest.mark.root


@pytest.fixture
def scratch() -> Iterator[Path]:
    with directory() as path:
        yield path


async def test_an_unfit_snapshotter_is_served_and_says_why(scratch: Path) -> None:
    """Every call and the plugin's description carry the sentence; the process stays."""
    (scratch / "config.toml").write_text('[snapshots.trees]\ndriver = "btrfs"\n')
    with snapshotd(scratch, "trees", config=scratch / "config.toml") as process:
        channel = connect(f"unix://{scratch}/snapshotd-trees.sock")
        snapshotter = RemoteSnapshotter(channel)
        for call in (snapshotter.prepare("a"), snapshotter.stat("a"), snapshotter.remove("a"), snapshotter.cleanup()):
            with pytest.raises(FailedPrecondition, match="subvolumes need btrfs"):
                await call
        with pytest.raises(FailedPrecondition, match="subvolumes need btrfs"):
            [info async for info in snapshotter.walk()]
        (plugin,) = await RemoteIntrospection(channel).plugins()
        channel.close()
        assert process.poll() is None
    assert plugin.error.endswith("skip plugin")
    assert plugin.capabilities == ()


def test_an_overlay_can_not_hold_overlays(scratch: Path) -> None:
    """The sentence says what to do about it."""
    options = []
    for option in ("lowerdir", "upperdir", "workdir"):
        (scratch / option).mkdir()
        options.append(f"{option}={scratch / option}")
    with mounted([Mount(type="overlay", source="overlay", options=tuple(options))], parent=scratch) as tree:
        with pytest.raises(Unfit, match=r"is on an overlay, .* set root_path"):
            Overlay().check(tree)


def test_entries_without_types_can_not_hold_overlays(scratch: Path) -> None:
    """An ext4 without the feature `filetype`, or an xfs with ftype=0."""
    with volume(scratch, "ext4", megabytes=8, options=("-O", "^filetype")) as point:
        with pytest.raises(Unfit, match="d_type"):
            Overlay().check(point)


@pytest.mark.parametrize("driver", [Overlay, Native])
async def test_a_full_disk_is_told_and_nothing_half_made_remains(scratch: Path, driver: type[Driver]) -> None:
    """Preparing fails with the reason, the key is free, and with space again everything goes on."""
    with volume(scratch, "ext4", megabytes=16, options=("-m", "0", "-O", "^has_journal")) as point:
        async with open_snapshotter(point / "root", driver(), Settings()) as snapshotter:
            (mount,) = await snapshotter.prepare("a")
            await asyncio.to_thread((Path(mount.source) / "file").write_bytes, b"x" * 2_000_000)
            await snapshotter.commit("base", "a")
            await asyncio.to_thread(fill, point / "ballast")
            key, error = await until_refused(snapshotter, "base")
            assert re.search("no space|full", str(error))
            with pytest.raises(NotFound):
                await snapshotter.stat(key)
            (point / "ballast").unlink()
            await snapshotter.cleanup()
            await snapshotter.prepare(key, "base")
            known = [info.name async for info in snapshotter.walk()]
            assert len(os.listdir(point / "root" / "snapshots")) == len(known)


@pytest.mark.parametrize("driver", [Overlay, Native])
async def test_a_full_inode_table_is_told_and_nothing_half_made_remains(scratch: Path, driver: type[Driver]) -> None:
    """As with a full disk; removing a snapshot works on it, and helps."""
    with volume(scratch, "ext4", megabytes=16, options=("-N", "48")) as point:
        async with open_snapshotter(point / "root", driver(), Settings()) as snapshotter:
            key, error = await until_refused(snapshotter, "")
            assert key in str(error)
            await snapshotter.cleanup()
            known = [info.name async for info in snapshotter.walk()]
            assert key not in known
            assert len(os.listdir(point / "root" / "snapshots")) == len(known)
            for name in known[:2]:
                await snapshotter.remove(name)
            await snapshotter.cleanup()
            await snapshotter.prepare("again")


async def until_refused(snapshotter: Snapshotter, parent: str) -> tuple[str, ResourceExhausted]:
    """Prepare snapshots as long as there is room; the key and the error of the first that there is none for."""
    for number in range(100):
        try:
            await snapshotter.prepare(f"k{number}", parent)
        except ResourceExhausted as error:
            return f"k{number}", error
    pytest.fail("there is room without end")


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 12, 1):
            while True:
                try:
                    stream.write(b"\0" * size)
                except OSError:
                    break
