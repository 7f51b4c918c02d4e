"""Content into the content store: through a pipe that the store reads where it offers one, by messages otherwise.

state of a ref       what happens
blob is there        nothing is moved; the store notes that the lease holds it
ingest, part         continued where it ends
ingest, wrong bytes  aborted; once more from the start if the part was an older one, or another host has it
written by others    waited for
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Final

from carina import context, faults
from carina.content import ContentStore, DescriptorLane, Writer
from carina.descriptor import Descriptor
from carina.errors import AlreadyExists, DataLoss, FailedPrecondition, NotFound, Unavailable, Unimplemented
from imaged.progress import ref_key

CALL_SECONDS: Final = 30.0
"""For a call that needs no more than a look into a database."""
COMMIT_SECONDS: Final = 600.0
"""For a commit, which may hash and flush all of a blob."""
BUSY_SECONDS: Final = 120.0
"""How long another writer of the same ref is waited for."""
STALL_SECONDS: Final = 60.0
"""How long the store may take no byte."""

PROBE: Final = 1 << 20
"""Bytes that are written to find out whether any can be."""

Source = Callable[[int], AsyncGenerator[bytes, None]]
"""The bytes from an offset on."""


async def ingest(
    store: ContentStore,
    descriptor: Descriptor,
    source: Source,
    *,
    origin: str,
    distrust: Callable[[], bool],
    labels: Mapping[str, str],
    moved: Callable[[int], None],
) -> bool:
    """Store what a descriptor names; False where it was there already.

    Bytes that turn out wrong are fetched once more as long as `distrust` finds somewhere else to fetch them from.

    Raises:
        DataLoss: the bytes are not what the descriptor says; `origin` is named.
        ResourceExhausted: the disk is full.
        Unavailable: the store can't be reached, or somebody else keeps writing the same content.
    """
    suspected = False
    while True:
        try:
            resumed = await _receive(store, descriptor, source, moved)
            return await _commit(store, descriptor, labels)
        except AlreadyExists:
            return False
        except FailedPrecondition as error:
            await discard(store, ref_key(descriptor))
            if resumed and not suspected:
                suspected = True  # an older part may be to blame
            elif not distrust():
                raise DataLoss(
                    f"{origin}: the bytes of {descriptor.digest} are not those that its manifest names: {error}"
                ) from error


async def _commit(store: ContentStore, descriptor: Descriptor, labels: Mapping[str, str]) -> bool:
    async with await open_writer(store, descriptor) as writer:
        if writer.status.offset != descriptor.size:
            raise Unavailable(
                f"content {descriptor.digest}: the store has {writer.status.offset} of {descriptor.size} bytes"
            )
        with context.deadline(COMMIT_SECONDS):
            await writer.commit(size=descriptor.size, expected=descriptor.digest, labels=labels)
            faults.point("imaged.content.committed")
    return True


async def open_writer(store: ContentStore, descriptor: Descriptor) -> Writer:
    """A writer of the descriptor's ref. Raises AlreadyExists, or Unavailable when others go on writing."""

    async def attempt() -> Writer:
        with context.deadline(CALL_SECONDS):
            return await store.writer(ref_key(descriptor), total=descriptor.size, expected=descriptor.digest)

    pause = 0.05
    try:
        async with asyncio.timeout(BUSY_SECONDS):
            while True:
                try:
                    return await attempt()
                except Unavailable:
                    await asyncio.sleep(pause)
                    pause = min(2.0, pause * 2)
    except TimeoutError:
        return await attempt()


async def discard(store: ContentStore, ref: str) -> None:
    """Remove an ingest, if there is one."""
    try:
        with context.deadline(CALL_SECONDS):
            await store.abort(ref)
    except NotFound:
        pass


async def _receive(store: ContentStore, descriptor: Descriptor, source: Source, moved: Callable[[int], None]) -> bool:
    """Bring the ingest to its full size; True where it began with bytes from before."""
    if isinstance(store, DescriptorLane):
        try:
            return await _by_pipe(store, descriptor, source, moved)
        except Unimplemented:
            pass
        except _GaveUp:
            await _probe(store, descriptor)
            raise
    async with await open_writer(store, descriptor) as writer:
        offset = start = writer.status.offset
        if offset > descriptor.size:
            await writer.truncate(0)
            offset = start = 0
        async with aclosing(_stream(source, offset, descriptor)) as chunks:
            async for chunk in chunks:
                await writer.write(chunk)
                offset += len(chunk)
                moved(offset)
    return start > 0


class _GaveUp(Unavailable):
    """A pipe does not tell why nobody reads it any more."""


async def _probe(store: ContentStore, descriptor: Descriptor) -> None:
    """Write and take back some bytes by messages, for the error that the store has: a full disk, for one."""
    async with await open_writer(store, descriptor) as writer:
        offset = writer.status.offset
        with context.deadline(CALL_SECONDS):
            await writer.write(bytes(PROBE))
            await writer.truncate(offset)


async def _by_pipe(store: DescriptorLane, descriptor: Descriptor, source: Source, moved: Callable[[int], None]) -> bool:
    fd, start = await _open_pipe(store, descriptor)
    try:
        if start > descriptor.size:
            os.close(fd)
            fd = -1
            fd, start = await _open_pipe(store, descriptor, offset=0)
        os.set_blocking(fd, False)
        offset = start
        async with aclosing(_stream(source, offset, descriptor)) as chunks:
            async for chunk in chunks:
                await write_pipe(fd, chunk, descriptor)
                offset += len(chunk)
                moved(offset)
    finally:
        if fd >= 0:
            os.close(fd)
    return start > 0


async def _open_pipe(store: DescriptorLane, descriptor: Descriptor, offset: int | None = None) -> tuple[int, int]:
    pause = 0.05
    limit = asyncio.get_running_loop().time() + BUSY_SECONDS
    while True:
        try:
            with context.deadline(CALL_SECONDS):
                return await store.open_ingest(
                    ref_key(descriptor), total=descriptor.size, expected=descriptor.digest, offset=offset
                )
        except Unavailable:
            if asyncio.get_running_loop().time() > limit:
                raise
            await asyncio.sleep(pause)
            pause = min(2.0, pause * 2)


async def _stream(source: Source, offset: int, descriptor: Descriptor) -> AsyncGenerator[bytes, None]:
    if offset < descriptor.size:
        async with aclosing(source(offset)) as chunks:
            async for chunk in chunks:
                yield chunk


async def write_pipe(fd: int, data: bytes, descriptor: Descriptor) -> None:
    """Write all of `data` to a non-blocking pipe.

    Raises:
        Unavailable: the reader is gone, or takes nothing for a minute.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    await _writable(fd)
            except TimeoutError as error:
                raise Unavailable(f"content {descriptor.digest}: the content store takes no bytes") from error
        except BrokenPipeError as error:
            raise _GaveUp(f"content {descriptor.digest}: the content store gave up the ingest") from error


async def _writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(fd)
