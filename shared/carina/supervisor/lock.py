"""One constellation per root and per state directory."""

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from carina.errors import FailedPrecondition

_FLOCK: Final = struct.Struct("hhqqi4x")
"""struct flock of fcntl(2): type, whence, start, length, pid."""


@contextlib.contextmanager
def hold(directory: Path, noun: str) -> Iterator[None]:
    """Hold `directory`/lock.

    A POSIX record lock: free again when the process ends, however it ends, not inherited by forked services,
    and the kernel says who holds it, so that no pid is ever read from a file whose writer is long gone.

    Raises:
        FailedPrecondition: another process holds it.
    """
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            pid = _holder(descriptor) or "unknown"
            raise FailedPrecondition(
                f"{noun} {directory} is in use by a running constellation (pid {pid}): stop it with `carina down`"
            ) from error
        yield
    finally:
        os.close(descriptor)


def holder(directory: Path) -> int | None:
    """Pid of the process that holds the lock, None where nobody does."""
    try:
        descriptor = os.open(directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return _holder(descriptor)
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> int | None:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    # The pid is 0 for a process of a pid namespace that we don't see.
    return pid if kind != fcntl.F_UNLCK and pid > 0 else None
