"""Ingestion: who writes to a ref, and what becomes of the bytes.

One holder at a time has a ref, a `Writer` (calls) or a `Drain` (a pipe). What is on disk is an `ingests.Ingest`.

state      write, truncate  digest  commit                          close, pipe at its end  abort
open       open             open    committed; closed if it fails   closed                  aborted
committed  error            answer  error                           committed               -
closed     error            error   error                           closed                  -
aborted    error            error   error                           aborted                 -

The ref is free in every state but open. The bytes are an ingest while open or closed, a blob once committed,
nothing once aborted; AlreadyExists at commit counts as aborted.
Every step on disk runs in a thread and to its end: a cancelled caller finds the state that the step left.
"""

import asyncio
import enum
import errno
import fcntl
import os
import select
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol, Self

from carina import faults
from carina import labels as label_rules
from carina.aio.finish import finish
from carina.aio.locks import KeyedLock
from carina.aio.threads import in_thread
from carina.content import Status
from carina.digest import Digest
from carina.errors import AlreadyExists, CarinaError, DataLoss, FailedPrecondition
from contentd import files, ingests
from contentd.flush import Flush
from contentd.ingests import Ingest, Progress

COMMIT_SECONDS: Final = 120.0
"""How long another commit or deletion of the same digest is waited for."""
STALL_SECONDS: Final = 30.0
"""How long a pipe may bring nothing while somebody waits for its ref."""
_SLICE_SECONDS: Final = 0.25
_PAUSE_MILLISECONDS: Final = 5


class State(enum.Enum):
    OPEN = "open"
    COMMITTED = "committed"
    CLOSED = "closed"
    ABORTED = "aborted"


class Holder(Protocol):
    """Whoever has a ref."""

    released: asyncio.Event

    def patience(self) -> float:
        """Seconds that it is still worth while to wait for the ref."""

    async def abort(self) -> None:
        """Give the ref up and remove the ingest."""


Release = Callable[[str, Progress | None, CarinaError | None], None]
"""Called once, when a holder has let go of a ref: with the hash where it is known, and why a drain gave up."""
Published = Callable[[Digest], None]
"""Called when a blob has got its name: a descriptor of that name from before is of a file that was put aside."""


class LocalWriter:
    """The `Writer` of an ingest on this disk."""

    def __init__(
        self, ingest: Ingest, *, digests: KeyedLock, flush: Flush, release: Release, published: Published
    ) -> None:
        self._ingest = ingest
        self._digests = digests
        self._flush = flush
        self._release = release
        self._published = published
        self._state = State.OPEN
        self._turn = asyncio.Lock()
        self._digest: Digest | None = None
        self._status = ingest.status
        self.released = asyncio.Event()

    @property
    def status(self) -> Status:
        return self._status

    def patience(self) -> float:
        return 0.0

    async def write(self, data: bytes) -> None:
        async with self._turn:
            self._require_open()
            try:
                await in_thread(self._ingest.append, data)
            finally:
                self._status = self._ingest.status

    async def truncate(self, offset: int) -> None:
        async with self._turn:
            self._require_open()
            await in_thread(self._ingest.truncate, offset)
            self._status = self._ingest.status

    async def digest(self) -> Digest:
        async with self._turn:
            if self._digest is not None:
                return self._digest
            self._require_open()
            known = self._ingest.current_digest
            return known if known is not None else await in_thread(self._ingest.digest)

    async def commit(
        self, *, size: int = 0, expected: Digest | None = None, labels: Mapping[str, str] | None = None
    ) -> Digest:
        label_rules.validate(labels or {})
        return await finish(self._commit(size, expected, labels or {}))

    async def _commit(self, size: int, expected: Digest | None, labels: Mapping[str, str]) -> Digest:
        async with self._turn:
            self._require_open()
            try:
                digest = await self._checked(size, expected)
                await in_thread(self._ingest.seal)
                async with self._digests.hold(digest, seconds=COMMIT_SECONDS):
                    try:
                        await in_thread(self._ingest.publish, digest, labels)
                        self._published(digest)
                    finally:
                        await self._flush.directory(self._ingest.layout.blobs(digest.algorithm))
                        faults.point("contentd.commit.flushed")
            except AlreadyExists:
                await in_thread(self._ingest.remove)
                self._end(State.ABORTED, None)
                raise
            except BaseException:
                await self._pause()
                raise
            self._digest = digest
            self._end(State.COMMITTED, None)
            return digest

    async def _checked(self, size: int, expected: Digest | None) -> Digest:
        ingest = self._ingest
        if size > 0 and size != ingest.offset:
            raise FailedPrecondition(f"ref {ingest.ref!r} has {ingest.offset} bytes, the commit expects {size}")
        known = ingest.current_digest
        if known is None or (expected is not None and known.algorithm != expected.algorithm):
            known = await in_thread(ingest.digest, expected.algorithm if expected else None)
        digest = known
        if expected is not None and digest != expected:
            raise FailedPrecondition(f"ref {ingest.ref!r} has the digest {digest}, the commit expects {expected}")
        return digest

    async def close(self) -> None:
        await finish(self._close())

    async def _close(self) -> None:
        async with self._turn:
            if self._state is State.OPEN:
                await self._pause()

    async def _pause(self) -> None:
        progress = None
        try:
            progress = await in_thread(self._ingest.pause)
        finally:
            self._end(State.CLOSED, progress)

    async def abort(self) -> None:
        async with self._turn:
            if self._state is State.OPEN:
                await in_thread(self._ingest.remove)
                self._end(State.ABORTED, None)

    def _end(self, state: State, progress: Progress | None) -> None:
        self._state = state
        self._release(self._ingest.ref, progress, None)
        self.released.set()

    def _require_open(self) -> None:
        if self._state is not State.OPEN:
            raise FailedPrecondition(f"ref {self._ingest.ref!r}: its writer is {self._state.value}")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.close()


class Drain:
    """Moves what comes out of a pipe into an ingest until the pipe's last writer is gone."""

    def __init__(self, ingest: Ingest, pipe: int, *, release: Release) -> None:
        self._ingest = ingest
        self._pipe = pipe
        self._release = release
        self._ended = False
        self._aborted = False
        self._moved = time.monotonic()
        self._wake = asyncio.Event()
        self.released = asyncio.Event()
        self._failure: CarinaError | None = None

    def patience(self) -> float:
        return self._moved + STALL_SECONDS - time.monotonic()

    async def run(self) -> None:
        """Until the end of the pipe, an error (whoever writes then gets EPIPE), an abort or a cancellation."""
        loop = asyncio.get_running_loop()
        try:
            await in_thread(self._ingest.digest)
            while not self._aborted and not self._ended:
                loop.add_reader(self._pipe, self._wake.set)
                try:
                    await self._wake.wait()
                finally:
                    loop.remove_reader(self._pipe)
                self._wake.clear()
                if not self._aborted:
                    await in_thread(self._move)
        except CarinaError as error:
            self._failure = error
        finally:
            os.close(self._pipe)
            await finish(self._finish())

    def _move(self) -> None:
        until = time.monotonic() + _SLICE_SECONDS
        buffer = ingests.space()
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        while time.monotonic() < until:
            try:
                count = os.readv(self._pipe, [buffer])
            except BlockingIOError:
                if not poll.poll(_PAUSE_MILLISECONDS):
                    return
                continue
            if count == 0:
                self._ended = True
                return
            self._ingest.append(buffer[:count])
            self._moved = time.monotonic()

    async def _finish(self) -> None:
        progress = None
        try:
            if self._aborted or isinstance(self._failure, DataLoss):
                await in_thread(self._ingest.remove)
            else:
                # Nobody was told that these bytes are safe: the commit flushes them, and whoever commits waits there.
                progress = await in_thread(self._ingest.pause, flush=False)
        except CarinaError as error:
            self._failure = self._failure or error
        finally:
            self._release(self._ingest.ref, progress, self._failure)
            self.released.set()

    async def abort(self) -> None:
        self._aborted = True
        self._wake.set()
        await self.released.wait()


def pipe() -> tuple[int, int]:
    """A pipe's read end, which does not block, and write end, as large as this system allows."""
    try:
        reading, writing = os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise files.failed(error, "making a pipe") from error
    os.set_blocking(reading, False)
    for size in (files.CHUNK, files.CHUNK // 4):
        if _resized(writing, size):
            break
    return reading, writing


def _resized(fd: int, size: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    except OSError as error:  # EPERM: the user's pipes take too much memory together (pipe(7), pipe-user-pages-soft)
        if error.errno != errno.EPERM:
            raise
        return False
    return True
