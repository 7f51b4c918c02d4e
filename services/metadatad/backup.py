"""A copy of the database while it is in use: made beside it, read, and gone with the last reader."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from carina.aio.threads import in_thread
from carina.errors import FailedPrecondition
from carina.sqlite import copies

PIECE: Final = 256 * 1024
_MARK: Final = ".copy-"


class DatabaseBackup:
    """`carina.backup.Backup` of the database at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = asyncio.Lock()

    async def read(self) -> AsyncGenerator[bytes, None]:
        if self._turn.locked():
            raise FailedPrecondition("another backup is being made: wait until it is done")
        async with self._turn:
            descriptor = await in_thread(_copied, self._path)
            try:
                offset = 0
                while data := await in_thread(os.pread, descriptor, PIECE, offset):
                    yield data
                    offset += len(data)
            finally:
                os.close(descriptor)


def _copied(path: Path) -> int:
    """A descriptor of a copy that has no name any more."""
    target = path.with_name(f"{path.name}{_MARK}{os.urandom(4).hex()}")
    copies.copy(path, target)
    try:
        return os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        copies.remove(target)


def remove_leftovers(path: Path) -> None:
    """Of a process that was killed while it copied."""
    for name in os.listdir(path.parent):
        if name.startswith((f"{path.name}{_MARK}", f"{path.name}.new-")):
            with contextlib.suppress(OSError):
                os.unlink(path.parent / name)
