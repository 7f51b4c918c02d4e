"""What a snapshotter keeps on disk, and finds there when it starts."""

import asyncio
import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from carina.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from carina.snapshots import Kind
from snapshotd.native import Native
from snapshotd.overlay import Overlay
from snapshotd.removal import remove_tree
from snapshotd.snapshotter import UPPERDIR, Settings, open_snapshotter

QUICK = Settings(durable=False)


def directories(root: Path) -> list[str]:
    return sorted(os.listdir(root / "snapshots"))


@pytest.mark.root
@pytest.mark.parametrize("umask", [0o000, 0o077])
async def test_nobody_else_can_reach_a_tree(tmp_path: Path, umask: int) -> None:
    """Whatever the umask, and also where the directories were wide open before, only root gets in."""
    root = tmp_path / "root"
    (root / "snapshots").mkdir(parents=True)
    root.chmod(0o777)
    (root / "snapshots").chmod(0o777)
    old = os.umask(umask)
    try:
        async with open_snapshotter(root, Overlay(), QUICK) as snapshotter:
            (mount,) = await snapshotter.prepare("a")
    finally:
        os.umask(old)
    for path in (root, root / "snapshots", root / "snapshots" / "1"):
        assert path.stat().st_mode & 0o777 == 0o700
    assert Path(mount.source).stat().st_mode & 0o777 == 0o755
    stranger = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ls", mount.source)
    process = await asyncio.create_subprocess_exec(*stranger, stderr=asyncio.subprocess.PIPE)
    assert b"Permission denied" in (await process.communicate())[1]


@pytest.mark.root
async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    """Kinds, parents, labels, times, usage and mounts; and a removed snapshot's id is not given again."""
    async with open_snapshotter(tmp_path, Overlay(), QUICK) as snapshotter:
        await snapshotter.prepare("a", "", {"k": "v"})
        await snapshotter.commit("base", "a", {"l": "w"})
        mounts = await snapshotter.prepare("b", "base")
        infos = [await snapshotter.stat(name) for name in ("base", "b")]
        await snapshotter.prepare("c")
        await snapshotter.remove("c")
    async with open_snapshotter(tmp_path, Overlay(), QUICK) as snapshotter:
        assert [await snapshotter.stat(name) for name in ("base", "b")] == infos
        assert await snapshotter.mounts("b") == mounts
        (mount,) = await snapshotter.prepare("d")
        assert mount.source.endswith("/4/fs")
        await snapshotter.cleanup()
        assert directories(tmp_path) == ["1", "2", "4"]


@pytest.mark.root
async def test_two_processes_can_not_have_one_directory(tmp_path: Path) -> None:
    """The second is told so."""
    async with open_snapshotter(tmp_path, Overlay(), QUICK):
        with pytest.raises(FailedPrecondition, match="in use"):
            async with open_snapshotter(tmp_path, Overlay(), QUICK):
                pass


@pytest.mark.root
async def test_rubbish_is_freed_and_what_is_not_ours_is_left(tmp_path: Path) -> None:
    """Directories in the making, without row, or set aside before a crash go; a stranger's file stays."""
    async with open_snapshotter(tmp_path, Overlay(), QUICK) as snapshotter:
        await snapshotter.prepare("a")
    for name in ("7", "new-8", "rm-3-1", "stranger"):
        (tmp_path / "snapshots" / name / "fs").mkdir(parents=True)
    async with open_snapshotter(tmp_path, Overlay(), QUICK) as snapshotter:
        (mount,) = await snapshotter.prepare("b")
        assert mount.source.endswith("/8/fs")
        await snapshotter.cleanup()
    assert directories(tmp_path) == ["1", "8", "stranger"]


@pytest.mark.root
async def test_a_lost_directory_is_told_and_can_be_removed(tmp_path: Path) -> None:
    """What stands on it gives no mounts, instead of an empty tree."""
    async with open_snapshotter(tmp_path, Overlay(), QUICK) as snapshotter:
        await snapshotter.prepare("a")
        await snapshotter.commit("base", "a")
        await snapshotter.prepare("b", "base")
    await asyncio.to_thread(remove_tree, tmp_path / "snapshots" / "1")
    async with open_snapshotter(tmp_path, Overlay(), QUICK) as snapshotter:
        assert (await snapshotter.stat("base")).kind is Kind.COMMITTED
        with pytest.raises(DataLoss, match="snapshots/1 is gone"):
            await snapshotter.mounts("b")
        with pytest.raises(DataLoss, match="snapshots/1 is gone"):
            await snapshotter.prepare("c", "base")
        await snapshotter.remove("b")
        await snapshotter.remove("base")


@pytest.mark.root
@pytest.mark.parametrize("at_once", [False, True])
async def test_removal_is_later_or_at_once(tmp_path: Path, at_once: bool) -> None:
    """By default the key is free at once and the space later; with `sync_remove` both."""
    settings = Settings(durable=False, sync_remove=at_once)
    async with open_snapshotter(tmp_path, Overlay(), settings) as snapshotter:
        await snapshotter.prepare("a")
        await snapshotter.remove("a")
        with pytest.raises(NotFound):
            await snapshotter.stat("a")
        assert [name.partition("-")[0] for name in directories(tmp_path)] == ([] if at_once else ["rm"])
        if not at_once:
            freeing = asyncio.create_task(snapshotter.run())
            async with asyncio.timeout(30):
                while directories(tmp_path):
                    await asyncio.sleep(0.01)
            freeing.cancel()


@pytest.mark.root
async def test_the_upper_directory_is_shown_where_asked_for(tmp_path: Path) -> None:
    """In stat, walk and update, and filters see it; it is not stored."""
    async with open_snapshotter(tmp_path, Overlay(), Settings(upperdir_label=True)) as snapshotter:
        (mount,) = await snapshotter.prepare("a")
        info = await snapshotter.stat("a")
        assert info.labels == {UPPERDIR: mount.source}
        assert (await snapshotter.update(info)).labels == info.labels
        assert [one.name async for one in snapshotter.walk([f'labels."{UPPERDIR}"'])] == ["a"]
    async with open_snapshotter(tmp_path, Overlay(), QUICK) as snapshotter:
        assert (await snapshotter.stat("a")).labels == {}


@pytest.mark.root
async def test_a_parent_stays_while_it_is_copied(tmp_path: Path) -> None:
    """Its removal is refused; afterwards its copy has everything."""

    class Slow(Native):
        started: asyncio.Event
        loop: asyncio.AbstractEventLoop

        def create(self, directory: Path, *, kind: Kind, parents: Sequence[Path], labels: object) -> None:
            if parents:
                self.loop.call_soon_threadsafe(self.started.set)
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), self.loop).result()
            super().create(directory, kind=kind, parents=parents, labels={})

    driver = Slow()
    driver.started, driver.loop = asyncio.Event(), asyncio.get_running_loop()
    async with open_snapshotter(tmp_path, driver, QUICK) as snapshotter:
        await snapshotter.prepare("a")
        (tmp_path / "snapshots" / "1" / "fs" / "file").touch()
        await snapshotter.commit("base", "a")
        making = asyncio.create_task(snapshotter.prepare("b", "base"))
        await driver.started.wait()
        with pytest.raises(FailedPrecondition):
            await snapshotter.remove("base")
        (mount,) = await making
        assert os.listdir(mount.source) == ["file"]


@pytest.mark.root
async def test_a_cancelled_prepare_leaves_all_or_nothing(tmp_path: Path) -> None:
    """Either the snapshot is there, or its key is free and no directory remains."""
    async with open_snapshotter(tmp_path, Native(), QUICK) as snapshotter:
        for number in range(30):
            task = asyncio.create_task(snapshotter.prepare(f"k{number}"))
            for _ in range(number):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await snapshotter.cleanup()
        known = [info.name async for info in snapshotter.walk()]
        assert len(directories(tmp_path)) == len(known)
        for number in range(30):
            if f"k{number}" not in known:
                await snapshotter.prepare(f"k{number}")


@pytest.mark.root
async def test_a_full_disk_or_a_failing_driver_leaves_nothing(tmp_path: Path) -> None:
    """The error comes through, and the key is free again."""
    async with open_snapshotter(tmp_path, Overlay(), QUICK) as snapshotter:
        with pytest.raises(InvalidArgument):
            await snapshotter.prepare("a", "", {"containerd.io/snapshot/uidmapping": "nonsense"})
        await snapshotter.cleanup()
        assert directories(tmp_path) == []
        await snapshotter.prepare("a")


def test_a_tree_of_any_depth_is_removed(tmp_path: Path) -> None:
    """Deeper than a path may be long, and than descriptors may be open; links out of it are not followed."""
    top = tmp_path / "top"
    top.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    here = os.open(top, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("deeper", dir_fd=here)
        os.symlink(outside, "link", dir_fd=here)
        following = os.open("deeper", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = following
    os.close(here)
    remove_tree(top)
    assert not top.exists()
    assert (outside / "file").exists()


@pytest.mark.root
async def test_a_damaged_database_is_told(tmp_path: Path) -> None:
    """The sentence names the file; nothing is deleted."""
    async with open_snapshotter(tmp_path, Overlay(), QUICK) as snapshotter:
        await snapshotter.prepare("a")
    with sqlite3.connect(tmp_path / "metadata.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    content = bytearray((tmp_path / "metadata.db").read_bytes())
    content[:100] = b"x" * 100
    (tmp_path / "metadata.db").write_bytes(content)
    with pytest.raises(DataLoss, match=r"metadata\.db"):
        async with open_snapshotter(tmp_path, Overlay(), QUICK):
            pass
    assert directories(tmp_path) == ["1"]


@pytest.mark.root
async def test_mounts_are_those_of_the_records(tmp_path: Path) -> None:
    """Also when they were asked for before the snapshot was committed, removed, made anew or labelled."""
    async with open_snapshotter(tmp_path, Overlay(), QUICK) as snapshotter:
        await snapshotter.prepare("a")
        await snapshotter.mounts("a")
        await snapshotter.commit("base", "a")
        with pytest.raises(NotFound):
            await snapshotter.mounts("a")
        with pytest.raises(FailedPrecondition, match="committed"):
            await snapshotter.mounts("base")
        for parent in ("", "base"):
            made = await snapshotter.prepare("key", parent)
            assert await snapshotter.mounts("key") == await snapshotter.mounts("key") == made
            await snapshotter.remove("key")
            with pytest.raises(NotFound):
                await snapshotter.mounts("key")
        await snapshotter.prepare("key", "base")
        before = await snapshotter.mounts("key")
        labels = {f"containerd.io/snapshot/{kind}mapping": "0:5:9" for kind in ("uid", "gid")}
        await snapshotter.update(replace(await snapshotter.stat("key"), labels=labels))
        mapped = {"uidmap=0:5:9", "gidmap=0:5:9"} if "remap-ids" in snapshotter.capabilities else set()
        assert set((await snapshotter.mounts("key"))[0].options) == {*before[0].options, *mapped}


@pytest.mark.root
async def test_mounts_asked_for_during_a_change_are_not_remembered_past_it(tmp_path: Path) -> None:
    """Whoever asks while a key is removed and made anew gets one of the two; who asks later gets the new one."""
    async with open_snapshotter(tmp_path, Overlay(), QUICK) as snapshotter:
        done = asyncio.Event()

        async def ask() -> None:
            while not done.is_set():
                with suppress(NotFound):
                    await snapshotter.mounts("key")
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(ask(), name=f"ask {number}")
            for _ in range(20):
                made = await snapshotter.prepare("key")
                assert await snapshotter.mounts("key") == made
                await snapshotter.remove("key")
                with pytest.raises(NotFound):
                    await snapshotter.mounts("key")
            done.set()
