"""Performing mounts."""

import os
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from carina.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from carina.linux import fsmount, idmap, mount_options
from carina.linux.mount import (
    format_mount_command,
    mount_all,
    mount_points,
    mounted,
    unmount,
    unmount_all,
    unmount_beneath,
    unshare_mounts,
)
from carina.mount import Mount


def overlay(*lower: Path, upper: Path | None = None, work: Path | None = None) -> Mount:
    options = [f"lowerdir={':'.join(map(str, lower))}"]
    if upper and work:
        options += [f"upperdir={upper}", f"workdir={work}"]
    return Mount(type="overlay", source="overlay", options=tuple(options))


def layers(root: Path, count: int) -> list[Path]:
    made = []
    for number in range(count):
        layer = root / f"layer-{number}"
        layer.mkdir(parents=True)
        (layer / f"file-{number}").write_text(str(number))
        (layer / "top").write_text(str(number))
        made.append(layer)
    return made


def test_options_become_flags_and_data() -> None:
    """Options that mount(2) knows as flags are taken out, the last one wins, and the rest stays in order."""
    parsed = mount_options.parse(
        ["ro", "nosuid", "rw", "lowerdir=/a:/b", "rslave", "X-note=1", "index=off", "defaults"]
    )
    assert parsed.flags == mount_options.NOSUID
    assert parsed.propagation == (1 << 19) | mount_options.REC
    assert parsed.text == "lowerdir=/a:/b,index=off"
    assert mount_options.parse(["rbind", "ro"]).is_bind


def test_an_option_that_is_not_built_is_refused() -> None:
    """A loop device is not silently left out."""
    with pytest.raises(Unimplemented, match="loop"):
        mount_options.parse(["loop"])


def test_the_command_is_printed_as_ctr_does() -> None:
    """`ctr snapshots mounts` prints a command to paste into a shell."""
    mount = Mount(type="overlay", source="overlay", options=("lowerdir=/a:/b", "ro"))
    assert format_mount_command(mount, "/mnt") == "mount -t overlay overlay /mnt -o lowerdir=/a:/b,ro"


@pytest.mark.root
def test_a_read_only_bind_refuses_writes(tmp_path: Path) -> None:
    """`ro` holds for a bind mount, which takes a second call, and flags of the source's mount stay."""
    source = tmp_path / "source"
    source.mkdir()
    with mounted([Mount(type="bind", source=str(source), options=("ro", "rbind"))]) as tree:
        with pytest.raises(OSError, match="Read-only"):
            (tree / "file").write_text("no")
    with mounted([Mount(type="bind", source=str(source), options=("rw", "rbind", "nosuid"))]) as tree:
        (tree / "file").write_text("yes")
        assert os.statvfs(tree).f_flag & os.ST_NOSUID
    assert (source / "file").read_text() == "yes"
    assert not tree.exists()


@pytest.mark.root
def test_an_overlay_keeps_changes_in_its_upper_directory(tmp_path: Path) -> None:
    """A removed file becomes a whiteout above, and the layer below stays."""
    (lower,) = layers(tmp_path, 1)
    upper, work = tmp_path / "upper", tmp_path / "work"
    upper.mkdir()
    work.mkdir()
    with mounted([overlay(lower, upper=upper, work=work)]) as tree:
        (tree / "top").unlink()
        (tree / "new").write_text("new")
    assert stat.S_ISCHR((upper / "top").lstat().st_mode)
    assert sorted(os.listdir(lower)) == ["file-0", "top"]


@pytest.mark.root
@pytest.mark.parametrize("long", [False, True], ids=["short paths", "paths over 255 bytes"])
def test_layers_beyond_a_page_of_options_are_mounted(tmp_path: Path, long: bool) -> None:
    """128 layers with paths that make more than 4,096 bytes are one overlay, the first listed on top."""
    root = tmp_path / ("d" * 120) / ("e" * 120) if long else tmp_path / ("d" * 60)
    lower = layers(root, 128)
    mount = overlay(*lower)
    assert len(mount.options[0]) > 4096
    with mounted([mount]) as tree:
        assert (tree / "top").read_text() == "0"
        assert (tree / "file-127").read_text() == "127"


@pytest.mark.root
def test_an_older_kernel_gets_relative_layers(tmp_path: Path) -> None:
    """Without `lowerdir+`, paths relative to the common directory fit the page; this process's own directory stays."""
    root = tmp_path / ("d" * 100)
    options = mount_options.parse(overlay(*layers(root, 100)).options)
    target = tmp_path / "target"
    target.mkdir()
    before = Path.cwd()
    fsmount.from_layers_directory("overlay", options, str(target))
    try:
        assert (target / "file-99").read_text() == "99"
        assert Path.cwd() == before
    finally:
        unmount(target)


@pytest.mark.root
def test_a_comma_in_a_path_does_not_split_the_option(tmp_path: Path) -> None:
    """Such options are handed to the kernel one by one."""
    lower = layers(tmp_path / "a,b", 2)
    with mounted([overlay(*lower)]) as tree:
        assert (tree / "file-1").read_text() == "1"


def owners(tree: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.lstat().st_uid, path.lstat().st_gid) for path in sorted(tree.iterdir())}


MAPPED = ("uidmap=0:100000:1000,5000:7:1", "gidmap=0:200000:1000,5000:8:1")


@pytest.mark.root
def test_an_id_mapped_bind_shows_other_owners(tmp_path: Path) -> None:
    """Each range applies, ids without mapping belong to nobody, and `ro` holds; the files themselves stay."""
    source = tmp_path / "source"
    source.mkdir()
    for name, owner in (("root", 0), ("user", 999), ("other", 5000), ("none", 6000)):
        (source / name).touch()
        os.chown(source / name, owner, owner)
    before = owners(source)
    with mounted([Mount(type="bind", source=str(source), options=("rbind", "ro", *MAPPED))]) as tree:
        assert owners(tree) == {
            "none": (65534, 65534),
            "other": (7, 8),
            "root": (100000, 200000),
            "user": (100999, 200999),
        }
        with pytest.raises(OSError, match="Read-only"):
            (tree / "new").touch()
    assert owners(source) == before


@pytest.mark.root
@pytest.mark.parametrize("count", [2, 200])
def test_an_id_mapped_overlay_maps_its_lower_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """What is copied up is written with the mapped owner; no mount but the overlay remains, however many layers."""
    lower = layers(tmp_path / "lower", count)
    upper, work = tmp_path / "upper", tmp_path / "work"
    upper.mkdir()
    work.mkdir()
    plain = overlay(*reversed(lower), upper=upper, work=work)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with mounted([Mount(type="overlay", source="overlay", options=(*plain.options, *MAPPED))]) as tree:
        assert [point for point in mount_points() if point.startswith(f"{tmp_path}/")] == [str(tree)]
        assert (tree / "top").lstat().st_uid == 100000
        assert (tree / "top").read_text() == str(count - 1)
        (tree / "top").chmod(0o600)
    assert owners(upper) == {"top": (100000, 200000)}
    assert sorted(os.listdir(tmp_path)) == ["lower", "upper", "work"]


def test_a_mapping_that_is_none_is_refused() -> None:
    """Both are needed, each of three numbers that stay within the ids there are."""
    with pytest.raises(InvalidArgument, match="belong together"):
        mount_options.parse(["uidmap=0:1:1"])
    for wrong in ("", "0:1", "0:1:0", "0:-1:3", "0:4294967295:1", "a:b:c", "0:1:2,", "0:1:2:3"):
        with pytest.raises(InvalidArgument, match="id mapping"):
            idmap.parse(wrong)
    assert idmap.parse("0:5:6,7:8:9") == ((0, 5, 6), (7, 8, 9))


@pytest.mark.root
def test_a_failed_mount_undoes_those_before_it(tmp_path: Path) -> None:
    """Nothing remains mounted, and the error names what was missing."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    before = mount_points()
    good = Mount(type="bind", source=str(source), options=("rbind",))
    with pytest.raises(NotFound, match="/nowhere"):
        mount_all([good, Mount(type="bind", source="/nowhere", options=("rbind",))], target)
    assert mount_points() == before
    with pytest.raises(InvalidArgument, match="2 layers"):
        mount_all([Mount(type="overlay", source="overlay", options=(f"lowerdir={source}:{target}", "bogus=1"))], target)
    with pytest.raises(FailedPrecondition, match="nosuchfs"):
        mount_all([Mount(type="nosuchfs", source="x")], target)


@pytest.mark.root
def test_a_sub_path_can_not_leave_the_target(tmp_path: Path) -> None:
    """A symbolic link to the host's root resolves inside the target."""
    source, target = tmp_path / "source", tmp_path / "target"
    (target / "etc").mkdir(parents=True)
    source.mkdir()
    (source / "mark").write_text("mark")
    (target / "link").symlink_to("/etc")
    mount = Mount(type="bind", source=str(source), target="/link/../link", options=("ro", "rbind"))
    mount_all([mount], target)
    try:
        assert (target / "etc" / "mark").read_text() == "mark"
        assert not Path("/etc/mark").exists()
    finally:
        assert unmount_beneath(target) == 1


@pytest.mark.root
def test_unmounting_tells_what_was_there(tmp_path: Path) -> None:
    """Stacked mounts go one by one; a directory that is no mount point is not an error; a busy mount is."""
    source, target = tmp_path / "source", tmp_path / "with space"
    source.mkdir()
    target.mkdir()
    mount = Mount(type="bind", source=str(source), options=("rbind",))
    assert unmount(target) is False
    mount_all([mount, mount], target)
    assert str(target) in mount_points()
    descriptor = os.open(target, os.O_RDONLY)
    try:
        with pytest.raises(FailedPrecondition, match="with space"):
            unmount(target)
    finally:
        os.close(descriptor)
    assert unmount_all(target) == 2


@pytest.mark.root
def test_mounts_of_a_thread_of_its_own_are_not_seen_elsewhere(tmp_path: Path) -> None:
    """After `unshare_mounts` a mount stays private to the thread."""
    seen: list[bool] = []

    def alone() -> None:
        unshare_mounts()
        mount_all([Mount(type="tmpfs", source="tmpfs")], tmp_path)
        seen.append(str(tmp_path) in Path("/proc/thread-self/mountinfo").read_text())

    thread = threading.Thread(target=alone)
    thread.start()
    thread.join()
    assert seen == [True]
    assert str(tmp_path) not in mount_points()
