"""containerd's layers that try to leave the tree that they are applied to, each with what must be true after it.

`LINKS` are applied to an empty tree, `OVER` to one that is prepared. Names of the cases are containerd's.
"""

import os
from collections.abc import Callable
from pathlib import Path

from support.layers import Layer

Check = Callable[[Path], bool]


def all_users(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/passwd").write_bytes(b"all users")


def _with_localetc(root: Path) -> None:
    all_users(root)
    (root / "localetc").mkdir()


def _with_link(root: Path) -> None:
    all_users(root)
    (root / "etc/whitedout").write_bytes(b"here")
    (root / "localetc").symlink_to("/etc")


def _with_dead_link(root: Path) -> None:
    all_users(root)
    (root / "localetc").symlink_to("/dne")


def _with_hard_link(root: Path) -> None:
    all_users(root)
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
