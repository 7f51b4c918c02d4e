"""Whom a daemon runs as, beside what it needs and who owns its directory: looked at before anything changes.

A file that the wrong user made would be there for good, and the right user could not open it.
"""

import contextlib
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from carina.errors import FailedPrecondition, PermissionDenied

SYS_ADMIN: Final = 21
"""Number in capabilities(7)."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def require_own(directory: Path, service: str) -> None:
    """Refuse a directory that is another user's than this process's. One that is not there yet will be ours.

    Raises:
        FailedPrecondition: it is another user's.
        PermissionDenied: this user can't look, or can't make it.
    """
    try:
        owner = directory.stat().st_uid
    except FileNotFoundError:
        _require_makeable(directory, service)
        return
    except PermissionError as error:
        raise PermissionDenied(
            f"directory {directory} is out of reach of {service}, which runs as user {_name(os.geteuid())}"
        ) from error
    except OSError as error:
        raise FailedPrecondition(f"directory {directory} of {service}: {(error.strerror or '').lower()}") from error
    if owner != os.geteuid():
        raise FailedPrecondition(
            f"directory {directory} belongs to user {_name(owner)}, and {service} runs as {_name(os.geteuid())}: "
            f"start it as {_name(owner)}, or give it the directory with `chown -R {_name(os.geteuid())} {directory}`"
        )


def _require_makeable(directory: Path, service: str) -> None:
    existing = next(parent for parent in directory.parents if parent.exists())
    if not os.access(existing, os.W_OK | os.X_OK, effective_ids=True):
        raise PermissionDenied(
            f"directory {directory} can't be made by {service}, which runs as user {_name(os.geteuid())}: "
            f"{existing} belongs to {_name(existing.stat().st_uid)}"
        )


def require_root(service: str, why: str) -> None:
    """Refuse to run without root's rights over mounts and files.

    Raises:
        PermissionDenied: the user is not root, or CAP_SYS_ADMIN was taken from it.
    """
    if os.geteuid() != 0:
        raise PermissionDenied(f"{service} needs root, to {why}: it runs as user {_name(os.geteuid())}")
    if not effective() & 1 << SYS_ADMIN:
        raise PermissionDenied(f"{service} needs CAP_SYS_ADMIN, to {why}: it was started without it")


def effective() -> int:
    """The effective capabilities of this process, a bit each (proc_pid_status(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("CapEff:")), 16)


@contextlib.contextmanager
def kept_owner(directory: Path) -> Iterator[None]:
    """Have what root makes in a directory belong to the directory's owner once the block has ended, however it ends."""
    try:
        yield
    finally:
        if os.geteuid() == 0 and directory.is_dir():
            _give(directory)


def _give(directory: Path) -> None:
    descriptor = os.open(directory, _DIRECTORY)
    try:
        owner = os.fstat(descriptor)
        for entry in os.listdir(descriptor):
            if os.stat(entry, dir_fd=descriptor, follow_symlinks=False).st_uid != owner.st_uid:
                os.chown(entry, owner.st_uid, owner.st_gid, dir_fd=descriptor, follow_symlinks=False)
    finally:
        os.close(descriptor)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
