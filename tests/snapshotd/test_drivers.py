"""How the drivers lay out trees, and what they hand out as mounts."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from carina.errors import FailedPrecondition, InvalidArgument
from carina.linux.mount import mounted
from carina.mount import Mount
from carina.snapshots import Kind
from snapshotd.drivers import GID_MAPPING, UID_MAPPING, mapped_root
from snapshotd.native import Native, copy_tree
from snapshotd.overlay import Overlay
from snapshotd.records import Chain
from snapshotd.snapshotter import Settings, open_snapshotter


def place(number: int) -> str:
    return f"/s/{number}"


def test_overlay_mounts_are_those_of_containerd() -> None:
    """Without parent a bind mount; a view of one layer too; else an overlay, the nearest parent first."""
    driver = Overlay(["index=off"])
    active, view = Kind.ACTIVE, Kind.VIEW
    bind = [Mount(type="bind", source="/s/1/fs", options=("rw", "rbind"))]
    assert driver.mounts(Chain(id=1, kind=active), place) == bind
    bind = [Mount(type="bind", source="/s/1/fs", options=("ro", "rbind"))]
    assert driver.mounts(Chain(id=1, kind=view), place) == bind
    assert driver.mounts(Chain(id=2, kind=view, parents=(1,)), place) == bind
    options: tuple[str, ...] = ("workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/s/1/fs", "index=off")
    overlay = [Mount(type="overlay", source="overlay", options=options)]
    assert driver.mounts(Chain(id=3, kind=active, parents=(2, 1)), place) == overlay
    overlay = [Mount(type="overlay", source="overlay", options=options[2:])]
    assert driver.mounts(Chain(id=3, kind=view, parents=(2, 1)), place) == overlay


@pytest.mark.root
def test_an_unfit_file_system_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Overlays can't stand on proc, nor on a path that their options can't express."""
    with pytest.raises(FailedPrecondition, match="colon"):
        Overlay().check(tmp_path / "a:b")
    Overlay().check(tmp_path)
    assert os.listdir(tmp_path) == []
    with pytest.raises(FailedPrecondition, match="can't hold overlays"):
        Overlay(["bogus"]).check(tmp_path)


def test_a_tree_with_mapped_ids_belongs_to_the_mapped_root() -> None:
    """The labels that containerd's clients set for user namespaces."""
    assert mapped_root({}) is None
    assert mapped_root({UID_MAPPING: "0:1000:65536", GID_MAPPING: "1:5:9,0:2000:1"}) == (1000, 2000)
    for wrong in ("", "x", "0:1:2:3", "1:1000:10", "0:4294967295:2", "0:-1:3"):
        with pytest.raises(InvalidArgument):
            mapped_root({UID_MAPPING: wrong, GID_MAPPING: "0:0:1"})


@pytest.mark.root
def test_labels_map_ids_where_the_kernel_can(tmp_path: Path) -> None:
    """As containerd's overlayfs: layers are mapped, the files of a snapshot without parents have mapped owners."""
    driver = Overlay(["index=off"])
    driver.check(tmp_path)
    if "remap-ids" not in driver.capabilities:
        pytest.skip("the kernel has no id-mapped overlays")
    assert driver.capabilities == ("remap-ids", "only-remap-ids", "rebase")
    labels = {UID_MAPPING: "0:1000:65536", GID_MAPPING: "0:2000:65536"}
    mapping = ("uidmap=0:1000:65536", "gidmap=0:2000:65536")
    (mount,) = driver.mounts(Chain(id=3, kind=Kind.ACTIVE, parents=(2, 1), labels=labels), place)
    assert mount.options[:2] == mapping
    (mount,) = driver.mounts(Chain(id=2, kind=Kind.VIEW, parents=(1,), labels=labels), place)
    assert mount == Mount(type="bind", source="/s/1/fs", options=(*mapping, "ro", "rbind"))
    (mount,) = driver.mounts(Chain(id=1, kind=Kind.ACTIVE, labels=labels), place)
    assert mount.options == ("rw", "rbind")
    slow = Overlay(slow_chown=True)
    slow.check(tmp_path)
    assert slow.capabilities == ("remap-ids", "rebase")


@pytest.mark.root
def test_a_volatile_overlay_is_mounted_for_a_moment_without_that(tmp_path: Path) -> None:
    """Linux marks the scratch directory of a volatile mount, and refuses the next one: a look must not cost that."""
    driver = Overlay(["volatile"])
    driver.check(tmp_path)
    for number in (1, 2):
        directory, below = tmp_path / str(number), [tmp_path / "1"] if number == 2 else []
        directory.mkdir()
        driver.create(directory, kind=Kind.ACTIVE, parents=below, labels={})
    mounts = driver.mounts(Chain(id=2, kind=Kind.ACTIVE, parents=(1,)), lambda number: str(tmp_path / str(number)))
    assert "volatile" in mounts[0].options
    for name in ("first", "second"):
        with mounted(mounts) as tree:
            (tree / name).touch()
    assert sorted(os.listdir(tmp_path / "2" / "fs")) == ["first", "second"]


@pytest.mark.root
async def test_a_mapped_snapshot_is_written_with_mapped_owners(tmp_path: Path) -> None:
    """Its root, what it shows of its parent, and what is copied up."""
    async with open_snapshotter(tmp_path, Overlay(), Settings(durable=False)) as snapshotter:
        (mount,) = await snapshotter.prepare("a")
        (Path(mount.source) / "file").touch()
        await snapshotter.commit("base", "a")
        if "remap-ids" not in snapshotter.capabilities:
            pytest.skip("the kernel has no id-mapped overlays")
        labels = {UID_MAPPING: "0:1000:65536", GID_MAPPING: "0:2000:65536"}
        mounts = await snapshotter.prepare("b", "base", labels)

        def work() -> list[tuple[int, int]]:
            with mounted(mounts) as tree:
                (tree / "file").chmod(0o600)
                return [(path.lstat().st_uid, path.lstat().st_gid) for path in (tree, tree / "file")]

        assert await asyncio.to_thread(work) == [(1000, 2000)] * 2
        assert (tmp_path / "snapshots" / "2" / "fs" / "file").stat().st_uid == 1000


@pytest.mark.root
def test_a_copy_keeps_everything(tmp_path: Path) -> None:
    """Modes, owners, times, attributes, links, devices, pipes, holes; and set-id bits survive the change of owner."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "dir").mkdir(parents=True)
    target.mkdir()
    file = source / "dir" / "file"
    file.write_bytes(b"start")
    os.truncate(file, 8 << 20)
    os.setxattr(file, "user.note", b"\x00\xff")
    os.setxattr(source / "dir", "trusted.overlay.opaque", b"y")
    os.chown(file, 12, 34)
    file.chmod(0o6751)
    os.link(file, source / "hard")
    os.symlink("../outside", source / "soft")
    os.lchown(source / "soft", 5, 6)
    os.mkfifo(source / "pipe", 0o640)
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(source / "whiteout", stat.S_IFCHR, 0)
    (source / "dir").chmod(0o1777)
    for path in (file, source / "dir", source):
        os.utime(path, ns=(1, 123456789))
    copy_tree(source, target)

    for path in [source, *source.rglob("*")]:
        copied = (target / path.relative_to(source)).lstat()
        original = path.lstat()
        for attribute in ("st_mode", "st_uid", "st_gid", "st_rdev", "st_nlink", "st_size"):
            assert getattr(copied, attribute) == getattr(original, attribute), (path, attribute)
        if path.name in ("file", "dir", "source"):
            assert copied.st_mtime_ns == 123456789
    copy = target / "dir" / "file"
    assert copy.read_bytes() == file.read_bytes()
    assert copy.stat().st_blocks == file.stat().st_blocks
    assert copy.stat().st_ino == (target / "hard").stat().st_ino
    assert os.getxattr(copy, "user.note") == b"\x00\xff"
    assert os.getxattr(target / "dir", "trusted.overlay.opaque") == b"y"
    assert os.readlink(target / "soft") == "../outside"


def test_native_mounts_a_views_parent(tmp_path: Path) -> None:
    """A view needs no copy."""
    mounts = Native().mounts(Chain(id=2, kind=Kind.VIEW, parents=(1,)), place)
    assert mounts == [Mount(type="bind", source="/s/1/fs", options=("ro", "rbind"))]
