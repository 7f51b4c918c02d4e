"""Bytes of blobs out of the content store: through a descriptor where the store hands one out, by calls otherwise."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, Protocol

from carina import context
from carina.aio.threads import in_thread
from carina.content import ContentStore, DescriptorLane, Reader
from carina.descriptor import Descriptor
from carina.errors import DataLoss, Unimplemented
from imaged.ingest import CALL_SECONDS

PIECE: Final = 1 << 20


class Blob(Protocol):
    """An open blob."""

    async def read(self, offset: int, length: int) -> bytes:
        """Some bytes at `offset`. Raises DataLoss where there are none."""


@contextlib.asynccontextmanager
async def opened(store: ContentStore, descriptor: Descriptor) -> AsyncIterator[Blob]:
    """A blob for the time of the block.

    Raises:
        NotFound: it is not there.
        DataLoss: it does not have the size that its descriptor says.
    """
    if isinstance(store, DescriptorLane):
        try:
            with context.deadline(CALL_SECONDS):
                fd, size = await store.open_blob(descriptor.digest)
        except Unimplemented:
            pass
        else:
            file = _File(fd, descriptor)
            try:
                _check(descriptor, size)
                yield file
            finally:
                await file.close()
            return
    with context.deadline(CALL_SECONDS):
        reader = await store.reader(descriptor.digest)
    async with reader:
        _check(descriptor, reader.size)
        yield _Calls(reader, descriptor)


async def chunks(store: ContentStore, descriptor: Descriptor) -> AsyncGenerator[bytes, None]:
    """All bytes of a blob. Raises what `opened` raises."""
    async with opened(store, descriptor) as blob:
        offset = 0
        while offset < descriptor.size:
            piece = await blob.read(offset, PIECE)
            offset += len(piece)
            yield piece


class _File:
    """Read by one at a time, so that the descriptor is not another file's when a thread gets to it."""

    def __init__(self, fd: int, descriptor: Descriptor) -> None:
        self._fd = fd
        self._descriptor = descriptor
        self._lock = asyncio.Lock()

    async def read(self, offset: int, length: int) -> bytes:
        async with self._lock:
            if self._fd < 0:
                raise DataLoss(f"content {self._descriptor.digest} is read after it was closed")
            return _some(await in_thread(os.pread, self._fd, length, offset), self._descriptor, offset)

    async def close(self) -> None:
        async with self._lock:
            fd, self._fd = self._fd, -1
            os.close(fd)


class _Calls:
    def __init__(self, reader: Reader, descriptor: Descriptor) -> None:
        self._reader = reader
        self._descriptor = descriptor

    async def read(self, offset: int, length: int) -> bytes:
        with context.deadline(CALL_SECONDS):
            return _some(await self._reader.read(offset, length), self._descriptor, offset)


def _check(descriptor: Descriptor, size: int) -> None:
    if size != descriptor.size:
        raise DataLoss(f"content {descriptor.digest} has {size} bytes, its descriptor says {descriptor.size}")


def _some(piece: bytes, descriptor: Descriptor, offset: int) -> bytes:
    if not piece:
        raise DataLoss(f"content {descriptor.digest} ends after {offset} of {descriptor.size} bytes")
    return piece
