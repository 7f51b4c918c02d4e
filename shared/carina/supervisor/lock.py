"""One constellation per root and per state directory."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from carina.errors import FailedPrecondition


@contextlib.contextmanager
def hold(directory: Path, noun: str) -> Iterator[None]:
    """Hold `directory`/lock with our pid in it (flock(2): it is free again when the process ends, however it ends).

    Raises:
        FailedPrecondition: another process holds it.
    """
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise FailedPrecondition(
                f"{noun} {directory} is in use by a running constellation (pid {pid}): stop it with `carina down`"
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def holder(directory: Path) -> int | None:
    """Pid of the process that holds the lock, None where nobody does."""
    try:
        descriptor = os.open(directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 32).decode(errors="replace").strip()
        return int(text) if text.isdecimal() else None
    finally:
        os.close(descriptor)
    return None
