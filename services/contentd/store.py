"""The content store on a local disk: `ContentStore`, `DescriptorLane` and `Integrity`.

Rules that hold here: a ref has one holder; a digest is committed, deleted or relabelled by one caller at a time;
what is acknowledged is on disk, file and directory.
"""

import asyncio
import contextlib
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self, TypeVar

from carina import context, faults
from carina import filters as filtering
from carina import labels as label_rules
from carina.aio.finish import finish
from carina.aio.locks import KeyedLock
from carina.aio.threads import in_thread
from carina.content import Info, Status
from carina.content.descriptors import DescriptorReader, OpenBlobs
from carina.content.fields import fields as info_fields
from carina.content.fields import status_fields
from carina.digest import Digest
from carina.errors import AlreadyExists, CarinaError, InvalidArgument, NotFound, Unavailable
from carina.integrity import Verdict
from contentd import earlier, files, ingests, verify, writer
from contentd.files import Layout
from contentd.flush import Flush
from contentd.ingests import Ingest, Progress
from contentd.writer import Drain, Holder, LocalWriter

MAX_REF: Final = 4096
"""Bytes of a ref."""
LOCK_SECONDS: Final = 0.5
"""How long a ref's writer is waited for: as long as a peer that hangs up may need to be noticed."""
EXPIRY: Final = timedelta(hours=24)
_BATCH: Final = 256
_MAX_REMEMBERED: Final = 256

T = TypeVar("T")


class _Opening:
    """Holds a ref while its files are being opened."""

    def __init__(self) -> None:
        self.released = asyncio.Event()

    def patience(self) -> float:
        return 0.0

    async def abort(self) -> None:
        await self.released.wait()


class LocalContentStore:
    """Blobs and ingests in a directory that this process owns while the store is entered (`async with`)."""

    def __init__(self, path: Path | str, *, expire: timedelta = EXPIRY) -> None:
        self._layout = Layout(str(Path(path).absolute()))
        self._expire = expire
        self._digests = KeyedLock("content")
        self._flush = Flush()
        self._open = OpenBlobs(self._load)
        self._holders: dict[str, Holder] = {}
        self._progress: OrderedDict[str, Progress] = OrderedDict()
        self._failures: OrderedDict[str, CarinaError] = OrderedDict()
        self._tasks: asyncio.TaskGroup | None = None
        self._drains: set[asyncio.Task[None]] = set()
        self._lock = -1

    async def __aenter__(self) -> Self:
        self._lock = await in_thread(files.prepare, self._layout)
        await in_thread(earlier.convert, self._layout)
        await in_thread(files.remove_leftovers, self._layout)
        await self.expire()
        self._tasks = await asyncio.TaskGroup().__aenter__()
        return self

    async def __aexit__(self, *args: object) -> None:
        tasks, self._tasks = self._tasks, None
        for task in self._drains:
            task.cancel()
        for holder in list(self._holders.values()):
            if isinstance(holder, LocalWriter):
                await holder.close()
        if tasks is not None:
            await tasks.__aexit__(None, None, None)
        self._open.close()
        lock, self._lock = self._lock, -1
        os.close(lock)

    # Blobs

    def changing(self, digest: Digest) -> contextlib.AbstractAsyncContextManager[None]:
        """Nobody else commits, relabels or deletes a blob during the block.

        Raises:
            Unavailable: others did so for half a minute.
        """
        return self._digests.hold(digest)

    async def info(self, digest: Digest) -> Info:
        # After every deletion that was asked for before: who is told that a blob is there can rely on it.
        async with self.changing(digest):
            return await self._info(digest)

    async def _info(self, digest: Digest) -> Info:
        return await in_thread(files.info, self._layout, digest)

    async def update(self, info: Info, fields: Sequence[str] = ()) -> Info:
        for field in fields:
            if field != "labels" and not field.startswith("labels."):
                raise InvalidArgument(f"content {info.digest}: field {field!r} can't be changed, only labels can")
        return await finish(self._update(info, list(fields) or ["labels"]))

    async def _update(self, info: Info, fields: list[str]) -> Info:
        async with self._digests.hold(info.digest):
            before = await self._info(info.digest)
            labels = label_rules.changed(before.labels, info.labels, fields)
            label_rules.validate(labels)
            await self._write_labels(info.digest, labels)
            return await self._info(info.digest)

    async def _write_labels(self, digest: Digest, labels: Mapping[str, str]) -> None:
        await in_thread(files.write_labels, self._layout, digest, labels)
        await self._flush.directory(os.path.dirname(self._layout.labels(digest)))

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        match = filtering.matcher(filters, info_fields)
        digests = await in_thread(files.digests, self._layout)
        for start in range(0, len(digests), _BATCH):
            for info in await in_thread(files.infos, self._layout, digests[start : start + _BATCH]):
                if match(info):
                    yield info

    async def delete(self, digest: Digest) -> None:
        async with self.changing(digest):
            # Whoever gave up waiting may have had the blob stored again by now.
            context.require_time(f"deletion of content {digest}")
            await finish(self._delete(digest))
        await self._flush.directory(self._layout.blobs(digest.algorithm))

    async def _delete(self, digest: Digest) -> None:
        self._open.drop(digest)
        await in_thread(files.delete, self._layout, digest)

    async def verify(self, digest: Digest, *, quarantine: bool = False) -> Verdict:
        problem, size = await in_thread(verify.check, self._layout, digest)
        moved = bool(problem) and quarantine and await finish(self._set_aside(digest))
        return Verdict(size=size, problem=problem, quarantined=moved)

    async def _set_aside(self, digest: Digest) -> bool:
        async with self._digests.hold(digest):
            self._open.drop(digest)
            return await in_thread(verify.set_aside, self._layout, digest)

    async def reader(self, digest: Digest) -> DescriptorReader:
        return await self._open.open(digest)

    async def _load(self, digest: Digest) -> tuple[int, int]:
        async with self._digests.hold(digest):
            return await self.open_blob(digest)

    async def open_blob(self, digest: Digest) -> tuple[int, int]:
        opened: list[int] = []

        def open_blob() -> int:
            fd, size = files.open_blob(self._layout, digest)
            opened.append(fd)
            return size

        try:
            size = await in_thread(open_blob)
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        return opened[0], size

    # Ingests

    async def status(self, ref: str) -> Status:
        return await in_thread(ingests.status, self._layout, ref)

    async def statuses(self, filters: Sequence[str] = ()) -> list[Status]:
        match = filtering.matcher(filters, status_fields)
        return [one for one in await in_thread(ingests.statuses, self._layout) if match(one)]

    async def writer(self, ref: str, *, total: int = 0, expected: Digest | None = None) -> LocalWriter:
        opening = await self._take(ref, expected)
        try:
            ingest = await self._opened(ref, total=total, expected=expected)
        except BaseException:
            self._free(ref, opening)
            raise
        result = LocalWriter(
            ingest, digests=self._digests, flush=self._flush, release=self._released, published=self._open.drop
        )
        self._hold(ref, result, opening)
        return result

    async def open_ingest(
        self, ref: str, *, total: int = 0, expected: Digest | None = None, offset: int | None = None
    ) -> tuple[int, int]:
        if self._tasks is None:
            raise Unavailable(f"content store {self._layout.root} is closed")
        opening = await self._take(ref, expected)
        try:
            ingest = await self._opened(ref, total=total, expected=expected, keep=offset)
            try:
                reading, writing = writer.pipe()
            except BaseException:
                ingest.close()
                raise
        except BaseException:
            self._free(ref, opening)
            raise
        drain = Drain(ingest, reading, release=self._released)
        self._hold(ref, drain, opening)
        task = self._tasks.create_task(drain.run(), name=f"drain {ref[:64]}")
        self._drains.add(task)
        task.add_done_callback(self._drains.discard)
        return writing, ingest.offset

    async def abort(self, ref: str) -> None:
        await finish(self._abort(ref))

    async def _abort(self, ref: str) -> None:
        await self._discard(ref)
        faults.point("contentd.abort.removed")
        # Whoever asked forgets the ingest now: a loss of power must not bring it back.
        await self._flush.directory(self._layout.ingests)

    async def _discard(self, ref: str) -> None:
        self._failures.pop(ref, None)
        holder = self._holders.get(ref)
        if holder is not None:
            await holder.abort()
            if not isinstance(holder, _Opening):
                return
        if ref in self._holders:
            raise Unavailable(f"ref {ref!r} is locked")
        self._progress.pop(ref, None)
        # Nobody opens it meanwhile: what is written to a removed file could never be committed.
        removing = self._holders[ref] = _Opening()
        try:
            await in_thread(ingests.remove, self._layout, ref)
        finally:
            self._free(ref, removing)

    async def expire(self) -> None:
        """Remove ingests that nobody has touched for the store's expiry."""
        limit = datetime.now(UTC) - self._expire
        for status in await self.statuses():
            if status.ref not in self._holders and (status.updated_at or limit) < limit:
                try:
                    await self.abort(status.ref)
                except (NotFound, Unavailable):
                    pass

    # Who holds a ref

    async def _take(self, ref: str, expected: Digest | None) -> _Opening:
        size = len(ref.encode())
        if not 0 < size <= MAX_REF:
            raise InvalidArgument(f"ref {ref[:64]!r} must have between 1 and {MAX_REF} bytes, not {size}")
        if expected is not None:
            async with self._digests.hold(expected):
                if await in_thread(files.exists, self._layout, expected):
                    raise AlreadyExists(f"content {expected}: already exists")
        loop = asyncio.get_running_loop()
        limit = loop.time() + LOCK_SECONDS
        while (holder := self._holders.get(ref)) is not None:
            patience = max(holder.patience(), limit - loop.time())
            if patience <= 0:
                raise Unavailable(f"ref {ref!r} is locked")
            try:
                async with asyncio.timeout(patience):
                    await holder.released.wait()
            except TimeoutError:
                pass
        failure = self._failures.pop(ref, None)
        if failure is not None:
            raise failure
        opening = self._holders[ref] = _Opening()
        return opening

    async def _opened(self, ref: str, *, total: int, expected: Digest | None, keep: int | None = None) -> Ingest:
        ingest = Ingest(self._layout, ref, total=max(0, total), expected=expected)

        def open_ingest() -> None:
            ingest.open(self._progress.pop(ref, None))
            if keep is not None:
                ingest.truncate(keep)

        try:
            await in_thread(open_ingest)
        except BaseException:
            ingest.close()
            raise
        return ingest

    def _hold(self, ref: str, holder: Holder, opening: _Opening) -> None:
        self._holders[ref] = holder
        opening.released.set()

    def _free(self, ref: str, opening: _Opening) -> None:
        del self._holders[ref]
        opening.released.set()

    def _released(self, ref: str, progress: Progress | None, failure: CarinaError | None) -> None:
        del self._holders[ref]
        if progress is not None:
            _remember(self._progress, ref, progress)
        if failure is not None:
            _remember(self._failures, ref, failure)


def _remember(memory: OrderedDict[str, T], ref: str, value: T) -> None:
    memory[ref] = value
    while len(memory) > _MAX_REMEMBERED:
        memory.popitem(last=False)
