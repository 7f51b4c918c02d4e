"""Reading blobs again: what is on disk must still be what its name says.

A damaged blob is moved to `<root>/quarantine`, never deleted. What was written anew meanwhile is not touched:
the file that was moved is hashed once more, and put back where its bytes are right.
"""

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from carina.digest import Digest
from carina.errors import CarinaError, FailedPrecondition, NotFound
from contentd import files
from contentd.files import Layout

THREADS: Final = 4
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
Paced = Callable[[int], None]
"""Told how many bytes were read; returns when more may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    digest: Digest
    reason: str
    quarantined: bool = False


class Pace:
    """At most so many bytes a second, for all threads together."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free = time.monotonic()
        self._turn = threading.Lock()

    def __call__(self, count: int) -> None:
        with self._turn:
            self._free = max(self._free, time.monotonic()) + count / self._rate
            pause = self._free - time.monotonic()
        if pause > 0:
            time.sleep(pause)


def unlimited(count: int) -> None:
    """The pace of whoever wants to be done soon."""


def damaged(root: Path, *, quarantine: bool = False, paced: Paced = unlimited) -> Iterator[Damage]:
    """Every blob whose bytes are not those of its digest; moved to `<root>/quarantine` if that is asked for.

    A contentd may serve the same directory meanwhile.

    Raises:
        NotFound: there is no store in this directory.
        FailedPrecondition: a damaged blob can't be moved.
    """
    layout = Layout(str(root.absolute()))
    if not os.path.isdir(layout.blobs("sha256")):
        raise NotFound(f"there is no content store in {layout.root}")
    with ThreadPoolExecutor(THREADS, thread_name_prefix="verify") as pool:
        try:
            for found in pool.map(lambda digest: _look(layout, digest, paced), files.digests(layout)):
                if found is not None:
                    moved = quarantine and set_aside(layout, found.digest)
                    yield Damage(digest=found.digest, reason=found.reason, quarantined=moved)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _look(layout: Layout, digest: Digest, paced: Paced) -> Damage | None:
    try:
        reason, _ = check(layout, digest, paced)
    except NotFound:  # deleted meanwhile
        return None
    return Damage(digest=digest, reason=reason) if reason else None


def check(layout: Layout, digest: Digest, paced: Paced = unlimited) -> tuple[str, int]:
    """What is wrong with a blob, empty for nothing, and its size. Raises NotFound."""
    return _judge(layout.blob(digest), digest, paced)


def _judge(path: str, digest: Digest, paced: Paced) -> tuple[str, int]:
    try:
        fd = os.open(path, _READ)
    except FileNotFoundError:
        raise files.not_found(digest) from None
    except OSError as error:
        return _unreadable(error), 0
    try:
        found, size = _hashed(fd, digest.algorithm, paced)
    except OSError as error:
        return _unreadable(error), os.fstat(fd).st_size
    finally:
        os.close(fd)
    return "" if found == digest.hex else f"its bytes are {digest.algorithm}:{found}", size


def _unreadable(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "is a symbolic link and no blob"
    return f"can't be read: {(error.strerror or str(error)).lower()}"


def _hashed(fd: int, algorithm: str, paced: Paced) -> tuple[str, int]:
    """From the disk, not from what the page cache kept of it; and nothing that others use is pushed out of there."""
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    buffer = bytearray(files.CHUNK)
    at = 0
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    while count := os.preadv(fd, [buffer], at):
        hasher.update(memoryview(buffer)[:count])
        os.posix_fadvise(fd, at, count, os.POSIX_FADV_DONTNEED)
        at += count
        paced(count)
    return hasher.hexdigest(), at


def set_aside(layout: Layout, digest: Digest) -> bool:
    """Move a damaged blob to the quarantine; False where it is gone, or sound after all.

    Raises:
        FailedPrecondition: it can't be moved.
    """
    try:
        return _set_aside(layout, digest)
    except (OSError, CarinaError) as error:
        raise FailedPrecondition(f"content {digest} can't be moved to {layout.quarantine}: {error}") from error


def _set_aside(layout: Layout, digest: Digest) -> bool:
    os.makedirs(layout.quarantine, mode=0o700, exist_ok=True)
    # A blob may be damaged more than once: each time has its own name.
    target = f"{layout.quarantine}/{digest.algorithm}-{digest.hex}-{time.time_ns()}"
    try:
        os.rename(layout.blob(digest), target)
    except FileNotFoundError:
        return False
    if not _judge(target, digest, unlimited)[0]:
        with suppress(FileExistsError):  # and once more: equal bytes
            os.link(target, layout.blob(digest), follow_symlinks=False)
        os.unlink(target)
        files.flush_directory(layout.blobs(digest.algorithm))
        return False
    files.flush_directory(layout.quarantine)
    files.flush_directory(layout.blobs(digest.algorithm))
    return True
