"""The user of an image's process, looked up in a tree that is not trusted."""

import os
import socket
import stat
from pathlib import Path

import pytest

from carina.errors import InvalidArgument, NotFound
from carina.oci.user import MAX_FILE, User, lookup


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text(
        "root:x:0:0::/:/bin/sh\nweb:x:33:34::/:/bin/sh\n4294967296:x:0:0::/:/bin/sh\n-1:x:0:0::/:/x\n0x0:x:0:0::/:/x\n"
        "big:x:4294967296:0::/:/x\n"
    )
    (tmp_path / "etc" / "group").write_text("root:x:0:\nwww:x:34:\nextra:x:50:root,web\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web", User(uid=33, gid=34, additional_gids=(34, 50))),
        ("33", User(uid=33, gid=34, additional_gids=(34, 50))),
        ("1000", User(uid=1000)),
        ("1000:www", User(uid=1000, gid=34)),
        ("web:50", User(uid=33, gid=50)),
        ("2147483647:2147483647", User(uid=2147483647, gid=2147483647)),
    ],
)
def test_users_are_found(tree: Path, text: str, expected: User) -> None:
    """Names and numbers resolve, the primary group comes first, memberships are added."""
    assert expected == lookup(str(tree), text)


@pytest.mark.parametrize(
    "text", ["4294967296", "2147483648", "-1", "0x0", "0" * 20, " 0", "2147483648:1", "1:2147483648", "big"]
)
def test_numbers_out_of_range_are_refused(tree: Path, text: str) -> None:
    """What any parser might read as a number is never a name, and one out of range never becomes root."""
    with pytest.raises((InvalidArgument, NotFound)):
        lookup(str(tree), text)


def test_unknown_names_are_named(tree: Path) -> None:
    """A user that the image lacks is an error with its name."""
    with pytest.raises(NotFound, match="'nobody'"):
        lookup(str(tree), "nobody")
    with pytest.raises(NotFound, match="'staff'"):
        lookup(str(tree), "web:staff")


@pytest.mark.parametrize("name", ["passwd", "group"])
@pytest.mark.parametrize("kind", ["fifo", "symlink", "endless", "device", "socket", "directory", "large"])
def test_only_a_small_regular_file_is_read(tree: Path, kind: str, name: str) -> None:
    """A passwd or group that is a FIFO, a link, a device, a socket, a directory or huge is refused at once."""
    passwd = tree / "etc" / name
    passwd.unlink()
    if kind == "fifo":
        os.mkfifo(passwd)
    elif kind in ("symlink", "endless"):
        passwd.symlink_to("/dev/zero" if kind == "endless" else f"/etc/{name}")
    elif kind == "device":
        if os.geteuid() != 0:
            pytest.skip("needs root")
        os.mknod(passwd, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as own:
            own.bind(str(passwd))
    elif kind == "directory":
        passwd.mkdir()
    else:
        with passwd.open("wb") as file:
            file.truncate(1 << 30)

    with pytest.raises(InvalidArgument, match=f"/etc/{name} of the image"):
        lookup(str(tree), "root:root")


def test_an_entry_at_the_end_of_the_longest_file(tree: Path) -> None:
    """What is as long as may be is read to its last byte; one byte more is too long."""
    entry = b"last:x:77:0::/:/x"
    passwd = tree / "etc" / "passwd"
    passwd.write_bytes(b"#" * (MAX_FILE - len(entry) - 1) + b"\n" + entry)
    assert lookup(str(tree), "last").uid == 77
    passwd.write_bytes(passwd.read_bytes() + b"\n")
    with pytest.raises(InvalidArgument, match="longer than"):
        lookup(str(tree), "last")


def test_a_linked_etc_is_not_followed(tmp_path: Path) -> None:
    """An image whose /etc leads elsewhere can't borrow the machine's users."""
    (tmp_path / "etc").symlink_to("/etc")

    with pytest.raises(InvalidArgument):
        lookup(str(tmp_path), "root")
