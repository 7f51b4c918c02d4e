"""Whether a directory's file system takes and gives back what is written to it."""

import contextlib
import errno
import os
from pathlib import Path
from typing import Final

from carina.errors import DataLoss
from carina.linux.errnos import translated

SIZE: Final = 4096
_PATTERN: Final = b"carina is ready "


def exercise(directory: Path) -> None:
    """Write a small file and read it again; nothing of it is left, even after a kill.

    It has no name where the file system can do that (open(2), O_TMPFILE). It is not synced: that a disk is full is
    told by the write, since file systems reserve space when they take data (ext4, xfs, btrfs, tmpfs), and a sync
    every few seconds would keep a disk awake.

    Raises:
        ResourceExhausted: there is no room, or no free inode.
        FailedPrecondition: the file system is read-only.
        DataLoss: what was read is not what was written.
        CarinaError: whatever else the kernel says; the sentence names the directory.
    """
    data = _PATTERN * (SIZE // len(_PATTERN))
    try:
        descriptor = _open(directory)
        try:
            written = os.write(descriptor, data)
            found = os.pread(descriptor, SIZE, 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise translated(error, f"writing to {directory}") from error
    if found != data[:written]:
        raise DataLoss(f"{directory}: what was written there a moment ago reads differently")


def _open(directory: Path) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(directory, flags | os.O_TMPFILE, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
    path = directory / f".ready-{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    path.unlink()
    return descriptor
