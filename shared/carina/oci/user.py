"""The user of an image's process: `USER` of the image config, looked up in the image under limits.

Everything read here comes from the image and is not trusted:
only regular files below the root, 10 MiB at the most, numbers within int32.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from carina.errors import InvalidArgument, NotFound

MAX_FILE: Final = 10 * 1024 * 1024
MAX_ID: Final = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()


def is_numeric(text: str) -> bool:
    """Whether `USER` needs no look-up in the image: numbers only, both of them."""
    user, colon, group = text.partition(":")
    return user.isdecimal() and bool(colon) and group.isdecimal()


def numeric(text: str, noun: str) -> int:
    """A uid or gid.

    Raises:
        InvalidArgument: not a plain decimal number, or above 2147483647. Such a text is never taken for a name.
    """
    if not text.isascii() or not text.isdecimal() or len(text) > 10 or int(text) > MAX_ID:
        raise InvalidArgument(f"{noun} {text[:40]!r} is not a number from 0 to {MAX_ID}")
    return int(text)


def lookup(root: str, text: str) -> User:
    """Resolve `user`, `uid`, `user:group`, `uid:gid` in the tree at `root` as the OCI image specification has it.

    Raises:
        InvalidArgument: a number out of range, or a passwd or group file that can't be trusted.
        NotFound: no such user or group in the image.
    """
    user, _, group = text.partition(":")
    entry = _passwd(root, user)
    if entry:
        name, uid, gid = entry
    elif _looks_numeric(user):
        name, uid, gid = "", numeric(user, "uid"), 0
    else:
        raise NotFound(f"user {user!r} is not in the image's /etc/passwd")
    if group:
        return User(uid=uid, gid=_group(root, group))
    if not name:
        return User(uid=uid, gid=gid)
    others = (other for other in _memberships(root, name) if other != gid)
    return User(uid=uid, gid=gid, additional_gids=(gid, *others))


def _looks_numeric(text: str) -> bool:
    """Anything that a lenient parser might read as a number is a number here, and so never a name."""
    try:
        int(text, 0)
    except ValueError:
        return text.strip().lstrip("+-").isdecimal()
    return True


def _passwd(root: str, user: str) -> tuple[str, int, int] | None:
    wanted = numeric(user, "uid") if _looks_numeric(user) else None
    for fields in _entries(root, "passwd"):
        if len(fields) < 4 or not fields[2].isdecimal() or not fields[3].isdecimal():
            continue
        if fields[0] == user if wanted is None else int(fields[2]) == wanted:
            return fields[0], numeric(fields[2], f"uid of {user} in /etc/passwd"), numeric(fields[3], "gid")
    return None


def _group(root: str, group: str) -> int:
    if _looks_numeric(group):
        return numeric(group, "gid")
    for fields in _entries(root, "group"):
        if fields[0] == group and len(fields) > 2:
            return numeric(fields[2], f"gid of {group} in /etc/group")
    raise NotFound(f"group {group!r} is not in the image's /etc/group")


def _memberships(root: str, name: str) -> list[int]:
    return [
        numeric(fields[2], f"gid of {fields[0]} in /etc/group")
        for fields in _entries(root, "group")
        if len(fields) > 3 and name in fields[3].split(",")
    ]


def _entries(root: str, name: str) -> Iterator[list[str]]:
    for line in _read(root, name).split(b"\n"):
        if line and not line.startswith(b"#"):
            yield line.decode(errors="replace").strip().split(":")


def _read(root: str, name: str) -> bytes:
    """/etc/`name` below root: no symlink is followed out of `etc`, nothing but a regular file is read."""
    try:
        top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"root file system {root} can't be opened: {error.strerror}") from error
    try:
        etc = os.open("etc", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            descriptor = os.open(name, flags, dir_fd=etc)
        finally:
            os.close(etc)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InvalidArgument(f"/etc/{name} of the image is not a regular file: {error.strerror}") from error
    finally:
        os.close(top)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidArgument(f"/etc/{name} of the image is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise InvalidArgument(f"/etc/{name} of the image is longer than {MAX_FILE} bytes")
    return data
