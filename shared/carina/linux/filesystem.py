"""What Python's `os` lacks for file systems: syncfs(2), reflinks, and whether directory entries tell their types."""

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from carina.linux.libc import call

FICLONE: Final = 0x40049409
_COPY_AT_ONCE: Final = 16 << 20
_NO_CLONE: Final = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.ETXTBSY}
_DT_UNKNOWN: Final = 0
_NAMES: Final[Mapping[int, str]] = MappingProxyType(
    {
        0xEF53: "ext4",
        0x58465342: "xfs",
        0x9123683E: "btrfs",
        0x794C7630: "overlay",
        0x01021994: "tmpfs",
        0x2FC12FC1: "zfs",
        0xF2F52010: "f2fs",
        0xE0F5E1E2: "erofs",
        0x6969: "nfs",
        0x65735546: "fuse",
        0x4D44: "vfat",
        0x9FA0: "proc",
    }
)


def sync_filesystem(path: Path) -> None:
    """Write everything on the file system of `path` to the disk, and its metadata: syncfs(2).

    Raises:
        OSError: a write failed (since Linux 5.8 also one that failed earlier).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        call("syncfs", descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make renames and new names in a directory survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_data(source: int, target: int) -> None:
    """Copy a regular file's bytes to an empty one: shared blocks where the file system can, holes stay holes."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
    else:
        return
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    position = 0
    while position < size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        _copy_range(source, target, start=start, end=end)
        position = end


def _copy_range(source: int, target: int, *, start: int, end: int) -> None:
    position, in_kernel = start, True
    while position < end:
        count = min(end - position, _COPY_AT_ONCE)
        if in_kernel:
            try:
                copied = os.copy_file_range(source, target, count, position, position)
            except OSError as error:
                if error.errno not in _NO_CLONE:
                    raise
                in_kernel = False
                continue
        else:
            copied = os.pwrite(target, os.pread(source, min(count, 1 << 20), position), position)
        if copied == 0:
            return
        position += copied


def entries_have_types(directory: Path) -> bool:
    """Whether reading a directory of this file system tells each entry's type (d_type), which overlayfs builds on.

    `directory` must hold at least one entry besides `.` and `..`.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        buffer = ctypes.create_string_buffer(4096)
        length = call("getdents64", descriptor, buffer, ctypes.c_size_t(4096))
    finally:
        os.close(descriptor)
    offset = 0
    while offset < length:
        # struct linux_dirent64: inode, offset, length of the record, type, name.
        _, _, size, kind = struct.unpack_from("=QqHB", buffer, offset)
        if kind == _DT_UNKNOWN:
            return False
        offset += size
    return True


def filesystem_type(path: Path) -> str:
    """Name of the kind of file system that `path` is on (`ext4`, `btrfs`, `overlay`), or its number in statfs(2).

    Raises:
        OSError: there is no such path.
    """
    buffer = ctypes.create_string_buffer(256)
    call("statfs", os.fsencode(path), buffer)
    (number,) = struct.unpack_from("=q" if struct.calcsize("l") == 8 else "=i", buffer)
    return _NAMES.get(number & 0xFFFFFFFF, f"type {number & 0xFFFFFFFF:#x}")


def is_whiteout(path: Path) -> bool:
    """Whether this is overlayfs's mark for a removed file: character device 0:0."""
    status = os.lstat(path)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def in_user_namespace() -> bool:
    """Whether the process lives in a user namespace other than the first."""
    try:
        lines = Path("/proc/self/uid_map").read_text().split()
    except FileNotFoundError:
        return False
    return lines != ["0", "0", "4294967295"]
