"""Readers of blobs by descriptor: a client that reads in small pieces, as Go's does, pays for opening only once.

A blob's descriptor is kept for some seconds after its last reader was closed, except after its deletion.
"""

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Self

from carina.aio.finish import finish
from carina.aio.threads import in_thread
from carina.digest import Digest
from carina.errors import DataLoss, InvalidArgument
from carina.linux.errnos import translated

IDLE_SECONDS: Final = 10.0
MAX_IDLE: Final = 64
_INLINE: Final = 128 * 1024
"""Bytes that are copied from the page cache on the event loop; a thread costs more than that."""


@dataclass(slots=True)
class _Blob:
    digest: Digest
    fd: int
    size: int
    users: int = 0
    idle_since: float = 0.0


class DescriptorReader:
    """The `Reader` of a blob whose file is on this machine."""

    def __init__(self, blob: _Blob, cache: "OpenBlobs") -> None:
        self._blob: _Blob | None = blob
        self._cache = cache
        self._size = blob.size

    @property
    def size(self) -> int:
        return self._size

    async def read(self, offset: int, length: int) -> bytes:
        blob = self._blob
        if blob is None:
            raise InvalidArgument("read of a closed reader")
        if offset < 0:
            raise InvalidArgument(f"content {blob.digest}: offset {offset} is negative")
        length = min(length, blob.size - offset)
        if length <= 0:
            return b""
        if length <= _INLINE:
            data = _cached(blob.fd, offset, length)
            if len(data) == length:
                return data
        blob.users += 1
        try:
            return await in_thread(_read_at, blob.fd, offset, length, blob.digest)
        finally:
            self._cache.let_go(blob)

    async def close(self) -> None:
        blob, self._blob = self._blob, None
        if blob is not None:
            self._cache.let_go(blob)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.close()


def _cached(fd: int, offset: int, length: int) -> bytes:
    """What of it is in the page cache; this never waits for a disk (preadv2(2), RWF_NOWAIT)."""
    buffer = bytearray(length)
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError:  # EAGAIN, or a file system that can't tell
        return b""
    return bytes(buffer[:count] if count < length else buffer)


def _read_at(fd: int, offset: int, length: int, digest: Digest) -> bytes:
    """Exactly `length` bytes, which the blob has. Raises DataLoss where the disk has fewer."""
    pieces = []
    try:
        while length:
            piece = os.pread(fd, length, offset)
            if not piece:
                raise DataLoss(f"content {digest}: its file ends at byte {offset}, before the blob does")
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
    except OSError as error:
        raise translated(error, f"reading content {digest}") from error
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class OpenBlobs:
    """Descriptors of blobs in use or just used, by digest.

    Args:
        load: opens a blob: its descriptor, then ours, and its size in bytes; raises NotFound.
    """

    def __init__(self, load: Callable[[Digest], Awaitable[tuple[int, int]]]) -> None:
        self._load = load
        self._blobs: dict[Digest, _Blob] = {}
        self._idle: OrderedDict[Digest, _Blob] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._drops = 0

    async def open(self, digest: Digest) -> DescriptorReader:
        """Raises NotFound."""
        blob = self._blobs.get(digest)
        if blob is None:
            blob = await finish(self._keep(digest))
        else:
            blob.users += 1
            self._idle.pop(digest, None)
        return DescriptorReader(blob, self)

    async def _keep(self, digest: Digest) -> _Blob:
        """Open a blob for one user, and keep it unless a deletion came in between."""
        drops = self._drops
        fd, size = await self._load(digest)
        blob = _Blob(digest, fd, size, users=1)
        if drops == self._drops:
            self._blobs.setdefault(digest, blob)
        return blob

    def drop(self, digest: Digest) -> None:
        """Forget a blob that is deleted; whoever has it open keeps it."""
        self._drops += 1
        blob = self._blobs.pop(digest, None)
        self._idle.pop(digest, None)
        if blob is not None and blob.users == 0:
            os.close(blob.fd)

    def let_go(self, blob: _Blob) -> None:
        """One user less. A blob that was dropped meanwhile is closed with its last user."""
        blob.users -= 1
        if blob.users > 0:
            return
        if self._blobs.get(blob.digest) is not blob:
            os.close(blob.fd)
            return
        blob.idle_since = time.monotonic()
        self._idle[blob.digest] = blob
        if len(self._idle) > MAX_IDLE:
            self.drop(next(iter(self._idle)))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = time.monotonic()
        for blob in list(self._idle.values()):
            if now - blob.idle_since >= IDLE_SECONDS:
                self.drop(blob.digest)
        if self._idle:
            self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._expire)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for digest in list(self._blobs):
            self.drop(digest)
