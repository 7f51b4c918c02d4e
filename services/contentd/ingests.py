"""Ingests on disk: plain functions that block, to be run in threads.

    <root>/ingest/<sha256 of the ref>/
        ref          the ref itself; without it or without data, the directory is a leftover
        data         the bytes so far
        startedat, updatedat   RFC 3339
        total, expected        bytes and digest, where they were announced

An `Ingest` is used by one thread at a time: its owner sees to that.
"""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from carina import faults
from carina.content import Status
from carina.digest import Digest
from carina.errors import AlreadyExists, CarinaError, DataLoss, InvalidArgument, NotFound, OutOfRange
from contentd import files
from contentd.files import Layout

if TYPE_CHECKING:
    from hashlib import _Hash

_OPEN: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_space: Final = threading.local()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The hash of an ingest's bytes, kept after it was closed, and what tells that the bytes are still the same."""

    inode: int
    size: int
    modified: int
    hasher: "_Hash"

    def fits(self, found: os.stat_result) -> bool:
        return (found.st_ino, found.st_size, found.st_mtime_ns) == (self.inode, self.size, self.modified)


class Ingest:
    """The open files of one ingest and the hash of its bytes, which is computed when it is first asked for."""

    def __init__(self, layout: Layout, ref: str, *, total: int, expected: Digest | None) -> None:
        self.layout = layout
        self.ref = ref
        self.path = layout.ingest(ref)
        self.offset = 0
        self.total = total
        self.expected = expected
        self.started_at = self.updated_at = datetime.now(UTC)
        self._fd = -1
        self._algorithm = expected.algorithm if expected else "sha256"
        self._hasher: _Hash | None = None

    @property
    def status(self) -> Status:
        return Status(
            ref=self.ref,
            offset=self.offset,
            total=self.total,
            expected=self.expected,
            started_at=self.started_at,
            updated_at=self.updated_at,
        )

    @property
    def current_digest(self) -> Digest | None:
        """The digest, where it costs nothing."""
        if self._hasher is None:
            return None
        return Digest(f"{self._algorithm}:{self._hasher.hexdigest()}")

    def open(self, progress: Progress | None = None) -> None:
        """Open the ingest, new or to be resumed. Another total than before means other bytes: it starts over."""
        try:
            before = _status(self.path)
            if before is not None and self.total and before.total and self.total != before.total:
                before = None
            if before is None:
                self._create()
            else:
                self._resume(before, progress)
        except OSError as error:
            self.close()
            raise self._failed(error, "opening") from error

    def _create(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.mkdir(self.path, 0o700)
        now = self.started_at.isoformat().encode()
        files_of = {"ref": self.ref.encode(), "startedat": now, "updatedat": now}
        if self.total:
            files_of["total"] = str(self.total).encode()
        if self.expected:
            files_of["expected"] = self.expected.encode()
        for name, data in files_of.items():
            _write(f"{self.path}/{name}", data)
        faults.point("contentd.ingest.described")
        self._fd = os.open(f"{self.path}/data", _OPEN | os.O_EXCL, 0o600)
        self._hasher = hashlib.new(self._algorithm, usedforsecurity=False)

    def _resume(self, before: Status, progress: Progress | None) -> None:
        assert before.started_at is not None
        assert before.updated_at is not None
        self.offset, self.started_at, self.updated_at = before.offset, before.started_at, before.updated_at
        if self.total and not before.total:
            _write(f"{self.path}/total", str(self.total).encode())
        self.total = self.total or before.total
        if self.expected and self.expected != before.expected:
            _write(f"{self.path}/expected", self.expected.encode())
        self.expected = self.expected or before.expected
        self._algorithm = self.expected.algorithm if self.expected else "sha256"
        data = f"{self.path}/data"
        os.chmod(data, 0o600)  # a commit that was cut short may have made it read-only
        self._fd = os.open(data, _OPEN)
        if self.offset == 0:
            self._hasher = hashlib.new(self._algorithm, usedforsecurity=False)
        elif progress and progress.hasher.name == self._algorithm and progress.fits(os.fstat(self._fd)):
            self._hasher = progress.hasher

    def append(self, data: bytes | memoryview) -> None:
        """All of `data`, or none of it. Raises ResourceExhausted."""
        view, at = memoryview(data), self.offset
        try:
            while view:
                count = os.pwrite(self._fd, view, at)
                at += count
                view = view[count:]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._fd, self.offset)
            raise self._failed(error, "writing") from error
        if self._hasher is not None:
            self._hasher.update(data)
        self.offset = at
        self.updated_at = datetime.now(UTC)

    def truncate(self, offset: int) -> None:
        """Raises OutOfRange."""
        if offset < 0 or offset > self.offset:
            raise OutOfRange(f"ref {self.ref!r} has {self.offset} bytes: it can't be cut at {offset}")
        if offset == self.offset:
            return
        try:
            os.ftruncate(self._fd, offset)
        except OSError as error:
            raise self._failed(error, "truncating") from error
        self._hasher = None if offset else hashlib.new(self._algorithm, usedforsecurity=False)
        self.offset = offset
        self.updated_at = datetime.now(UTC)

    def digest(self, algorithm: str | None = None) -> Digest:
        """Digest of all bytes so far; they are read again where the hash is not known."""
        if algorithm and algorithm != self._algorithm:
            self._algorithm, self._hasher = algorithm, None
        if self._hasher is None:
            self._hasher = self._hash()
        return Digest(f"{self._algorithm}:{self._hasher.hexdigest()}")

    def _hash(self) -> "_Hash":
        hasher = hashlib.new(self._algorithm, usedforsecurity=False)
        buffer = space()
        at = 0
        try:
            while at < self.offset:
                count = os.preadv(self._fd, [buffer[: self.offset - at]], at)
                if count == 0:
                    raise DataLoss(f"ref {self.ref!r}: its file ends at byte {at}, not at {self.offset}")
                hasher.update(buffer[:count])
                at += count
        except OSError as error:
            raise self._failed(error, "hashing") from error
        return hasher

    def seal(self) -> None:
        """Make the bytes durable and the file read-only. A disk that fails here makes them worthless."""
        try:
            faults.point("contentd.commit.written")
            os.fchmod(self._fd, 0o444)
            now = time.time_ns()
            os.utime(self._fd, ns=(now, now))
            os.fsync(self._fd)
            faults.point("contentd.commit.synced")
        except OSError as error:
            failure = self._failed(error, "flushing")
            if isinstance(failure, DataLoss):
                self.remove()
            raise failure from error

    def publish(self, digest: Digest, labels: Mapping[str, str]) -> None:
        """Give the sealed bytes their name and remove the ingest. Raises AlreadyExists."""
        try:
            if files.exists(self.layout, digest):
                raise AlreadyExists(f"content {digest}: already exists")
            if labels:
                files.write_labels(self.layout, digest, labels)
                files.flush_directory(os.path.dirname(self.layout.labels(digest)))
            else:
                files.remove_labels(self.layout, digest)
            faults.point("contentd.commit.labelled")
            os.rename(f"{self.path}/data", self.layout.blob(digest))
            faults.point("contentd.commit.named")
        except OSError as error:
            raise self._failed(error, "committing") from error
        self.remove()
        faults.point("contentd.commit.removed")

    def pause(self, *, flush: bool = True) -> Progress | None:
        """Close the ingest to be resumed later. Returns the hash where it is known."""
        if self._fd < 0:
            return None
        try:
            if flush:
                os.fsync(self._fd)
            _write(f"{self.path}/updatedat", self.updated_at.isoformat().encode())
            found = os.fstat(self._fd)
        except OSError as error:
            raise self._failed(error, "closing") from error
        finally:
            self.close()
        if self._hasher is None or found.st_size != self.offset:
            return None
        return Progress(inode=found.st_ino, size=found.st_size, modified=found.st_mtime_ns, hasher=self._hasher.copy())

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def remove(self) -> None:
        """Close the ingest and remove what is left of it."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def _failed(self, error: OSError, doing: str) -> CarinaError:
        return files.failed(error, f"{doing} ref {self.ref!r} in {self.layout.root}")


def space() -> memoryview:
    """A buffer of this thread's own."""
    found: memoryview | None = getattr(_space, "buffer", None)
    if found is None:
        found = _space.buffer = memoryview(bytearray(files.CHUNK))
    return found


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20).decode(errors="replace")
    except FileNotFoundError:
        return ""


def _status(path: str) -> Status | None:
    try:
        data = os.stat(f"{path}/data")
    except (FileNotFoundError, NotADirectoryError):
        return None
    ref = _read(f"{path}/ref")
    if not ref:
        return None
    modified = files.moment(data.st_mtime)
    total, expected = _read(f"{path}/total"), _read(f"{path}/expected")
    try:
        digest = Digest(expected) if expected else None
    except InvalidArgument:
        digest = None
    return Status(
        ref=ref,
        offset=data.st_size,
        total=int(total) if total.isdigit() else 0,
        expected=digest,
        started_at=_time(_read(f"{path}/startedat")) or modified,
        updated_at=max(modified, _time(_read(f"{path}/updatedat")) or modified),
    )


def _time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def status(layout: Layout, ref: str) -> Status:
    """Raises NotFound."""
    found = _status(layout.ingest(ref))
    if found is None:
        raise NotFound(f"ref {ref!r}: not found")
    return found


def statuses(layout: Layout) -> list[Status]:
    """Every ingest, by ref."""
    found = (_status(f"{layout.ingests}/{name}") for name in os.listdir(layout.ingests))
    return sorted((one for one in found if one is not None), key=lambda one: one.ref)


def remove(layout: Layout, ref: str) -> None:
    """Raises NotFound."""
    path = layout.ingest(ref)
    if not os.path.isdir(path):
        raise NotFound(f"ref {ref!r}: not found")
    shutil.rmtree(path, ignore_errors=True)
