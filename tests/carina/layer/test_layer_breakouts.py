"""No entry leaves the tree: containerd's list of escapes, and races. The applier runs here without any confinement."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from carina.errors import CarinaError, InvalidArgument
from support.layers import Layer, apply_here

pytestmark = pytest.mark.root

Check = Callable[[Path], bool]


def _etc(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/passwd").write_bytes(b"all users")


def _with_localetc(root: Path) -> None:
    _etc(root)
    (root / "localetc").mkdir()


def _with_link(root: Path) -> None:
    _etc(root)
    (root / "etc/whitedout").write_bytes(b"here")
    (root / "localetc").symlink_to("/etc")


def _with_dead_link(root: Path) -> None:
    _etc(root)
    (root / "localetc").symlink_to("/dne")


def _with_hard_link(root: Path) -> None:
    _etc(root)
    (root / "localetc").symlink_to("etc")
    os.link(root / "etc/passwd", root / "etc/localpasswd")


def _nothing(root: Path) -> None:
    pass


def _resolved(root: Path, name: str) -> Path:
    """What a process with this root would find under the name, links followed inside."""
    parts, path, count = name.split("/")[::-1], root, 0
    while parts:
        part = parts.pop()
        if part in ("", "."):
            continue
        if part == "..":
            path = path.parent if path != root else root
            continue
        path = path / part
        if path.is_symlink():
            count += 1
            assert count < 40
            target = os.readlink(path)
            path = root if target.startswith("/") else path.parent
            parts.extend(target.split("/")[::-1])
    return path


def _same(one: str, other: str) -> Check:
    return lambda root: os.path.samefile(_resolved(root, one), _resolved(root, other))


def _value(name: str, data: bytes) -> Check:
    return lambda root: _resolved(root, name).read_bytes() == data


def _absent(name: str) -> Check:
    return lambda root: not os.path.lexists(root / name)


def _same_link(one: str, other: str) -> Check:
    return lambda root: os.readlink(root / one) == os.readlink(root / other)


def _passwd() -> Layer:
    return Layer().directory("etc", 0o770).file("/etc/passwd", b"inside")


LINKS: dict[str, tuple[Layer, list[Check]]] = {
    "SymlinkAbsolute": (
        Layer().directory("etc").symlink("/etc", "localetc").file("/localetc/unbroken", b"ok"),
        [_value("etc/unbroken", b"ok")],
    ),
    "SymlinkUpAndOut": (
        Layer()
        .directory("etc")
        .directory("dummy")
        .symlink("/dummy/../etc", "localetc")
        .file("/localetc/unbroken", b"ok"),
        [_value("etc/unbroken", b"ok")],
    ),
    "SymlinkMultipleAbsolute": (
        Layer()
        .directory("etc")
        .directory("dummy")
        .symlink("/etc", "/dummy/etc")
        .symlink("/dummy/etc", "localetc")
        .file("/dummy/etc/unbroken", b"ok"),
        [_value("etc/unbroken", b"ok")],
    ),
    "SymlinkMultipleRelative": (
        Layer()
        .directory("etc")
        .directory("dummy")
        .symlink("/etc", "/dummy/etc")
        .symlink("./dummy/etc", "localetc")
        .file("/dummy/etc/unbroken", b"ok"),
        [_value("etc/unbroken", b"ok")],
    ),
    "SymlinkEmptyFile": (
        Layer().directory("etc").file("etc/emptied", b"full").symlink("/etc", "localetc").file("/localetc/emptied"),
        [_value("etc/emptied", b"")],
    ),
    "HardlinkRelative": (
        _passwd()
        .directory("breakouts")
        .symlink("../../etc", "breakouts/d1")
        .link("/breakouts/d1/passwd", "breakouts/mypasswd"),
        [_same("breakouts/mypasswd", "etc/passwd")],
    ),
    "HardlinkDownAndOut": (
        _passwd()
        .directory("breakouts")
        .directory("downandout")
        .symlink("../downandout/../../etc", "breakouts/d1")
        .link("/breakouts/d1/passwd", "breakouts/mypasswd"),
        [_same("breakouts/mypasswd", "etc/passwd")],
    ),
    "HardlinkAbsolute": (
        _passwd().symlink("/etc", "localetc").link("/localetc/passwd", "localpasswd"),
        [_same("localpasswd", "etc/passwd")],
    ),
    "HardlinkRelativeLong": (
        _passwd().symlink("../../../../../../../etc", "localetc").link("/localetc/passwd", "localpasswd"),
        [_same("localpasswd", "etc/passwd")],
    ),
    "HardlinkRelativeUpAndOut": (
        _passwd().symlink("upandout/../../../etc", "localetc").link("/localetc/passwd", "localpasswd"),
        [_same("localpasswd", "etc/passwd"), _absent("upandout")],
    ),
    "HardlinkDirectRelative": (
        _passwd().link("../../../../../etc/passwd", "localpasswd"),
        [_same("localpasswd", "etc/passwd")],
    ),
    "HardlinkDirectAbsolute": (
        _passwd().link("/etc/passwd", "localpasswd"),
        [_same("localpasswd", "etc/passwd")],
    ),
    "SymlinkParentDirectory": (
        _passwd().symlink("/etc/", "..").link("/etc/passwd", "localpasswd"),
        [_same("localpasswd", "etc/passwd")],
    ),
    "SymlinkEmptyFilename": (
        _passwd().symlink("/etc/", "").link("/etc/passwd", "localpasswd"),
        [_same("localpasswd", "etc/passwd")],
    ),
    "SymlinkParentRelative": (
        _passwd().symlink("/etc/", "localetc/sub/..").link("/etc/passwd", "/localetc/localpasswd"),
        [_same("localetc/localpasswd", "etc/passwd")],
    ),
    "SymlinkSlashEnded": (
        _passwd().directory("localetc/", 0o770).link("/etc/passwd", "/localetc/localpasswd"),
        [_same("localetc/localpasswd", "etc/passwd")],
    ),
    "HardlinkSymlinkBeforeCreateTarget": (
        Layer()
        .directory("etc", 0o770)
        .symlink("/etc/passwd", "localpasswd")
        .link("localpasswd", "localpasswd-dup")
        .file("/etc/passwd", b"after"),
        [_same("localpasswd-dup", "etc/passwd")],
    ),
    "HardlinkSymlinkRelative": (
        _passwd().symlink("../../../../../etc/passwd", "passwdlink").link("/passwdlink", "localpasswd"),
        [_same_link("localpasswd", "passwdlink"), _same("localpasswd", "etc/passwd")],
    ),
    "HardlinkSymlinkAbsolute": (
        _passwd().symlink("/etc/passwd", "passwdlink").link("/passwdlink", "localpasswd"),
        [_same_link("localpasswd", "passwdlink"), _same("localpasswd", "etc/passwd")],
    ),
}

OVER: dict[str, tuple[Callable[[Path], None], Layer, list[Check]]] = {
    "SymlinkOverrideDirectory": (
        _with_localetc,
        Layer().symlink("/etc", "localetc").link("/etc/passwd", "/localetc/localpasswd"),
        [_same("localetc/localpasswd", "etc/passwd")],
    ),
    "SymlinkOverrideDirectoryRelative": (
        _with_localetc,
        Layer().symlink("../../etc", "localetc").link("/etc/passwd", "/localetc/localpasswd"),
        [_same("localetc/localpasswd", "etc/passwd")],
    ),
    "DirectoryOverrideSymlink": (
        _with_link,
        Layer().directory("/localetc/").link("/etc/passwd", "/localetc/localpasswd"),
        [_same("localetc/localpasswd", "etc/passwd"), _absent("etc/localpasswd")],
    ),
    "DirectoryOverrideSymlinkAndHardlink": (
        _with_hard_link,
        Layer().directory("/localetc/").file("/localetc/localpasswd", b"different"),
        [lambda root: not _same("localetc/localpasswd", "etc/passwd")(root), _value("etc/passwd", b"all users")],
    ),
    "WhiteoutSymlink": (
        _with_link,
        Layer().file(".wh.localetc"),
        [_value("etc/passwd", b"all users"), _absent("localetc")],
    ),
    "WhiteoutSymlinkPath": (
        _with_link,
        Layer().file("localetc/.wh.whitedout"),
        [_value("etc/passwd", b"all users"), _absent("etc/whitedout")],
    ),
    "WhiteoutDirectoryName": (
        _with_link,
        Layer().file(".wh.etc/somefile", b"non-empty"),
        [_value("etc/passwd", b"all users"), _value(".wh.etc/somefile", b"non-empty")],
    ),
    "WhiteoutDeadSymlinkParent": (
        _with_dead_link,
        Layer().file("localetc/.wh.etc"),
        [_value("etc/passwd", b"all users")],
    ),
    "WhiteoutRelativePath": (
        _with_dead_link,
        Layer().file("dne/../.wh.etc"),
        [_absent("etc/passwd")],
    ),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(b"outside")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def _is_untouched(root: Path) -> bool:
    outside = root.parent
    return (
        sorted(os.listdir(outside)) == ["etc", "root"]
        and os.listdir(outside / "etc") == ["passwd"]
        and (outside / "etc/passwd").read_bytes() == b"outside"
        and (outside / "etc/passwd").stat().st_nlink == 1
    )


@pytest.mark.parametrize("overlay", [False, True], ids=["plain", "overlay"])
@pytest.mark.parametrize("name", LINKS)
def test_links_lead_to_places_inside(root: Path, name: str, overlay: bool) -> None:
    """Absolute and climbing links resolve below the root, and what is outside stays as it was."""
    layer, checks = LINKS[name]
    apply_here(layer.bytes(), root, overlay=overlay)
    assert [check(root) for check in checks] == [True] * len(checks)
    assert _is_untouched(root)


@pytest.mark.parametrize("name", OVER)
def test_entries_replace_what_was_there(root: Path, name: str) -> None:
    """Links, directories and whiteouts on top of an older tree change that tree and nothing behind its links."""
    prepare, layer, checks = OVER[name]
    prepare(root)
    apply_here(layer.bytes(), root)
    assert [check(root) for check in checks] == [True] * len(checks)
    assert _is_untouched(root)


@pytest.mark.parametrize("overlay", [False, True], ids=["plain", "overlay"])
@pytest.mark.parametrize("name", [".wh...", "etc/.wh...", ".wh..", "etc/.wh..", ".wh.", "etc/.wh."])
def test_whiteouts_of_directories_on_the_way_are_refused(root: Path, name: str, overlay: bool) -> None:
    """WhiteoutRootParent, WhiteoutParent, WhiteoutRoot, WhiteoutCurrentDirectory: nothing is removed."""
    _etc(root)
    with pytest.raises(InvalidArgument, match="whiteout"):
        apply_here(Layer().file(name).bytes(), root, overlay=overlay)
    assert (root / "etc/passwd").read_bytes() == b"all users"
    assert _is_untouched(root)


def test_a_hard_link_to_a_symbolic_link_changes_no_mode(root: Path) -> None:
    """HardlinkSymlinkChmod: the mode in the header of a hard link is not set through the link that it names."""
    victim = root.parent / "etc/passwd"
    victim.chmod(0o400)
    apply_here(Layer().symlink(str(victim), "/tmp/x").link("/tmp/x", "sketchy", mode=0o777).bytes(), root)
    assert victim.stat().st_mode & 0o777 == 0o400
    assert os.readlink(root / "sketchy") == str(victim)


def test_a_directory_replaced_by_a_link_is_not_remembered(root: Path) -> None:
    """What was known of a path is forgotten when an entry replaces one of its directories."""
    layer = (
        Layer()
        .directory("a")
        .file("a/x", b"1")
        .symlink(str(root.parent / "etc"), "a")
        .file("a/passwd", b"evil")
        .file("a/y", b"evil")
    )
    apply_here(layer.bytes(), root)
    assert _is_untouched(root)


SWAPPER = """
import os, sys, time
os.chdir(sys.argv[1]); end = time.monotonic() + 20
print(flush=True)
while time.monotonic() < end and not os.path.exists("stop"):
    try:
        os.rename("root/d", "root/e"); os.symlink(sys.argv[2], "root/d")
        os.unlink("root/d"); os.rename("root/e", "root/d")
    except OSError: pass
"""


def test_a_directory_swapped_for_a_link_meanwhile_lets_nothing_out(root: Path, tmp_path: Path) -> None:
    """While another process keeps replacing a directory with a link to the outside, nothing appears there."""
    (root / "d/s").mkdir(parents=True)
    (root.parent / "etc/s").mkdir()
    layer = Layer()
    for number in range(1500):
        layer.file(f"d/s/f{number}", b"evil").file(f"x{number}/y", b"").file(f"d/g{number}", b"evil")
    archive = layer.bytes()
    swapper = subprocess.Popen(
        [sys.executable, "-c", SWAPPER, str(tmp_path), str(root.parent / "etc")], stdout=subprocess.PIPE
    )
    assert swapper.stdout is not None
    try:
        swapper.stdout.readline()
        for _ in range(3):
            try:
                apply_here(archive, root)
            except InvalidArgument:
                continue
    finally:
        (tmp_path / "stop").touch()
        swapper.wait(20)
        swapper.stdout.close()
    assert sorted(os.listdir(root.parent / "etc")) == ["passwd", "s"]
    assert os.listdir(root.parent / "etc/s") == []


RACER = """
import os, sys, time
root, outside = sys.argv[1:]
end = time.monotonic() + 120
print(flush=True)
while time.monotonic() < end and not os.path.exists(root + ".stop"):
    for name in ("etc", "localetc", "d", "dir", "a"):
        path, aside = root + "/" + name, root + "/aside"
        try:
            os.rename(path, aside)
            os.symlink(outside, path)
            os.unlink(path)
            os.rename(aside, path)
        except OSError:
            pass
"""


@pytest.mark.parametrize("overlay", [False, True], ids=["plain", "overlay"])
def test_no_case_leads_outside_while_directories_are_swapped(root: Path, overlay: bool) -> None:
    """Every case of the list, while another process keeps replacing the tree's directories with links to the outside:
    each ends, well or with an error of the domain, and nothing outside has changed."""
    outside = root.parent / "etc"
    layers = [layer for layer, _ in LINKS.values()] + [layer for _, layer, _ in OVER.values()]
    racer = subprocess.Popen([sys.executable, "-c", RACER, str(root), str(outside)], stdout=subprocess.PIPE)
    assert racer.stdout is not None
    finished = 0
    try:
        racer.stdout.readline()
        for layer in layers * 4:
            try:
                apply_here(layer.bytes(), root, overlay=overlay)
            except CarinaError:
                continue
            finished += 1
    finally:
        stop = root.with_name(root.name + ".stop")
        stop.touch()
        racer.wait(30)
        racer.stdout.close()
        stop.unlink()
    assert _is_untouched(root)
    assert finished > 0
