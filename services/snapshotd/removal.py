"""Freeing the directories of removed snapshots, whatever was left in them.

snapshots/7         a snapshot
snapshots/new-...   one that is being made
snapshots/rm-...    one that is being freed: never a snapshot again
"""

import asyncio
import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from carina import faults
from carina.aio.threads import in_thread
from carina.errors import CarinaError
from carina.linux.mount import unmount_beneath
from snapshotd.records import Records

_log = logging.getLogger(__name__)
_NEW: Final = "new-"
_REMOVED: Final = "rm-"
_DEPTH: Final = 64
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directories:
    """The folder of snapshot directories: which are in use, which are being made, which are to be freed."""

    def __init__(self, folder: Path, records: Records, free: Callable[[Path], None]) -> None:
        self._folder = folder
        self._records = records
        self._begin = free
        """A driver's quick way to free a directory, or a part of it."""
        self._making: set[str] = set()
        self._sweeping = asyncio.Lock()
        self._work = asyncio.Event()

    def place(self, number: int) -> Path:
        return self._folder / str(number)

    def where(self, number: int) -> str:
        """`place`, as text."""
        return f"{self._folder}/{number}"

    @contextlib.contextmanager
    def making(self, number: int) -> Iterator[Path]:
        """A temporary directory's path for snapshot `number`, which no sweep touches during the block."""
        temporary = _unique(f"{_NEW}{number}")
        names = {temporary, str(number)}
        self._making |= names
        try:
            yield self._folder / temporary
        finally:
            self._making -= names

    async def present(self) -> set[int]:
        """Ids that have a directory."""
        return {int(name) for name in await in_thread(os.listdir, self._folder) if name.isdecimal()}

    async def discard(self, path: Path) -> None:
        """Put a directory among those to be freed."""
        await in_thread(_set_aside, path)
        self._work.set()

    def wake(self) -> None:
        """Have `run` look for directories to free."""
        self._work.set()

    async def run(self) -> None:
        """Free what is discarded, until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                await self.sweep()
            except CarinaError as error:
                _log.warning("freeing removed snapshots failed: %s", error)

    async def sweep(self) -> None:
        """Free every directory that belongs to no snapshot; what can't be freed is logged and left."""
        async with self._sweeping:
            names = await in_thread(os.listdir, self._folder)
            # In this order: a snapshot leaves `making` only when its row is there.
            making = set(self._making)
            ids = {str(number) for number in await self._records.ids()}
            await in_thread(_free, self._folder, sorted(set(names) - making - ids), self._begin)


def _unique(name: str) -> str:
    """What an earlier process left may have the same name."""
    return f"{name}-{os.urandom(6).hex()}"


def _set_aside(path: Path) -> Path | None:
    target = path.with_name(_unique(f"{_REMOVED}{path.name}"))
    try:
        path.rename(target)
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("snapshot directory %s can't be set aside: %s", path, error)
        return None
    return target


def _free(folder: Path, names: Iterable[str], begin: Callable[[Path], None]) -> None:
    for name in names:
        path: Path | None = folder / name
        if name.isdecimal() or name.startswith(_NEW):
            path = _set_aside(folder / name)
        elif not name.startswith(_REMOVED):
            _log.warning("%s is no snapshot's: left alone", folder / name)
            continue
        if path is not None:
            faults.point("snapshotd.free.begun")
            begin(path)
            _remove(path)
            faults.point("snapshotd.free.removed")


def _remove(path: Path) -> None:
    try:
        remove_tree(path)
    except OSError as error:
        _log.warning("%s can't be removed (%s): unmounting what is mounted in it", path, error)
        try:
            unmount_beneath(path)
            remove_tree(path)
        except (OSError, CarinaError) as second:
            _log.warning("%s can't be removed: %s", path, second)


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it, of any depth, without following a link or crossing a mount.

    Raises:
        OSError: something can't be removed.
    """
    top = os.open(path, _OPEN)
    try:
        while not _empty(top, top, depth=0):
            pass
    finally:
        os.close(top)
    path.rmdir()


def _empty(directory: int, top: int, *, depth: int) -> bool:
    """Remove a directory's entries. False: one lay too deep for a descriptor per level, and is now in `top`."""
    for name in os.listdir(directory):
        if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=directory)
            continue
        if depth == _DEPTH:
            os.rename(name, _unique("deep"), src_dir_fd=directory, dst_dir_fd=top)
            return False
        try:
            os.rmdir(name, dir_fd=directory)
            continue
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        child = os.open(name, _OPEN, dir_fd=directory)
        try:
            if not _empty(child, top, depth=depth + 1):
                return False
        finally:
            os.close(child)
        os.rmdir(name, dir_fd=directory)
    return True
