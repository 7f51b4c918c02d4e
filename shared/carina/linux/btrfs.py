"""Subvolumes and snapshots of btrfs, by ioctl(2), and which of a file's bytes are its own.

Everything here blocks: call it in a thread.
"""

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

_SUBVOLUME_CREATE: Final = 0x5000940E
_SUBVOLUME_DESTROY: Final = 0x5000940F
_SNAPSHOT_CREATE: Final = 0x50009417
_FIEMAP: Final = 0xC020660B
_SIZE: Final = 4096
_LONGEST_NAME: Final = 255
_EXTENT: Final = struct.Struct("=QQQ16xI12x")
"""struct fiemap_extent: logical, physical, length, flags."""
_HEAD: Final = struct.Struct("=QQIIII")
"""struct fiemap: start, length, flags, mapped extents, room for extents."""
_ROOM: Final = 128
_LAST: Final = 1
_SHARED: Final = 0x2000
_ROOT_INODE: Final = 256


def create_subvolume(path: Path) -> None:
    """Raises OSError."""
    with _parent(path) as directory:
        fcntl.ioctl(directory.number, _SUBVOLUME_CREATE, bytearray(_volume(path)))


def create_snapshot(source: Path, path: Path) -> None:
    """Make a writable snapshot of the subvolume `source` at `path`. Raises OSError."""
    with _parent(path) as directory, _Directory(source) as origin:
        arguments = struct.pack(f"=qQQ32x{_SIZE - 56}s", origin.number, 0, 0, os.fsencode(path.name))
        fcntl.ioctl(directory.number, _SNAPSHOT_CREATE, bytearray(arguments))


def destroy_subvolume(path: Path) -> None:
    """Remove a subvolume with all that is in it, but for subvolumes within: those make it fail. Raises OSError."""
    with _parent(path) as directory:
        fcntl.ioctl(directory.number, _SUBVOLUME_DESTROY, bytearray(_volume(path)))


def is_subvolume(path: Path) -> bool:
    """Whether a directory, which is on btrfs, is the top of a subvolume. Raises OSError."""
    return os.lstat(path).st_ino == _ROOT_INODE


def exclusive_bytes(path: str) -> int:
    """Bytes of a regular file's extents that no other file or snapshot shares. Its data must have been flushed.

    Raises:
        OSError: the file can't be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        start = total = 0
        while True:
            buffer = bytearray(_HEAD.size + _ROOM * _EXTENT.size)
            _HEAD.pack_into(buffer, 0, start, 2**64 - 1 - start, 0, 0, _ROOM, 0)
            fcntl.ioctl(descriptor, _FIEMAP, buffer)
            mapped = _HEAD.unpack_from(buffer)[3]
            for number in range(mapped):
                logical, _, length, flags = _EXTENT.unpack_from(buffer, _HEAD.size + number * _EXTENT.size)
                total += 0 if flags & _SHARED else length
                start = logical + length
                if flags & _LAST:
                    return total
            if not mapped:
                return total
    finally:
        os.close(descriptor)


class _Directory:
    """A directory, open for the block."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> "_Directory":
        self.number = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.number)


def _parent(path: Path) -> _Directory:
    return _Directory(path.parent)


def _volume(path: Path) -> bytes:
    name = os.fsencode(path.name)
    if not 0 < len(name) <= _LONGEST_NAME:
        raise OSError(36, f"name of subvolume {path} is too long")
    return struct.pack(f"=q{_SIZE - 8}s", 0, name)
