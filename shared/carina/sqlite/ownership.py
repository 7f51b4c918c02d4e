"""Who owns a database's file, and whether there ever was one: plain functions that block.

    <path>.lock     locked (flock(2)) while a process has the database open; not empty once there has been a database

So a database that is gone or was emptied is told from one that was never made.
"""

import errno
import fcntl
import os
import time
from pathlib import Path

from carina.errors import CarinaError, DataLoss, FailedPrecondition, ResourceExhausted, Unavailable


def claim(path: Path, *, seconds: float = 0.0) -> int:
    """Claim the database for this process, until the descriptor is closed.

    Raises:
        FailedPrecondition: another process has it, and does not let go of it within `seconds`.
        Unavailable, ResourceExhausted: the lock's file can't be made.
    """
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise failed(error, f"database {path} can't be opened") from error
    limit = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= limit:
                os.close(descriptor)
                raise FailedPrecondition(f"database {path} is in use by another process") from None
            time.sleep(0.05)
        else:
            return descriptor


def must_be_there(path: Path, descriptor: int) -> None:
    """Raises DataLoss: there was a database once, and the file is gone or empty."""
    if not os.fstat(descriptor).st_size:
        return
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DataLoss(f"database {path} is gone") from None
    except OSError as error:
        raise failed(error, f"database {path} can't be read") from error
    if not size:
        raise DataLoss(f"database {path} is empty, and was not before")


def mark(path: Path, descriptor: int) -> None:
    """Note that there is a database now."""
    if os.fstat(descriptor).st_size:
        return
    try:
        sync_directory(path.parent)
        os.pwrite(descriptor, b"made\n", 0)
        os.fsync(descriptor)
    except OSError as error:
        raise failed(error, f"database {path} can't be opened") from error


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def failed(error: OSError, what: str) -> CarinaError:
    kind = ResourceExhausted if error.errno in (errno.ENOSPC, errno.EDQUOT) else Unavailable
    return kind(f"{what}: {(error.strerror or str(error)).lower()}")
