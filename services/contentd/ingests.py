"""Ingests on disk: plain functions that block, to be run in threads.

    <root>/ingest/<sha256 of the ref>        the bytes so far; modified when they last were
    <root>/ingest/<sha256 of the ref>.json   ref, started_at (RFC 3339); total, expected where they were announced

One without the other is a leftover. There are no more files, because ext4 takes longer and longer to make one while
many have just been removed: it does not give their inodes out again for some seconds.
An `Ingest` is used by one thread at a time: its owner sees to that.
"""

import hashlib
import json
import os
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
_MAX_ABOUT: Final = 1 << 20
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
        _unlink(self.path)
        _write(_about(self.path), self._description())
        faults.point("contentd.ingest.described")
        self._fd = os.open(self.path, _OPEN | os.O_EXCL, 0o600)
        self._hasher = hashlib.new(self._algorithm, usedforsecurity=False)

    def _description(self) -> bytes:
        values: dict[str, object] = {"ref": self.ref, "started_at": self.started_at.isoformat()}
        if self.total:
            values["total"] = self.total
        if self.expected:
            values["expected"] = str(self.expected)
        return json.dumps(values).encode()

    def _resume(self, before: Status, progress: Progress | None) -> None:
        assert before.started_at is not None
        assert before.updated_at is not None
        self.offset, self.started_at, self.updated_at = before.offset, before.started_at, before.updated_at
        self.total = self.total or before.total
        self.expected = self.expected or before.expected
        if (self.total, self.expected) != (before.total, before.expected):
            _write(f"{_about(self.path)}{files.TEMPORARY}", self._description())
            os.rename(f"{_about(self.path)}{files.TEMPORARY}", _about(self.path))
        self._algorithm = self.expected.algorithm if self.expected else "sha256"
        os.chmod(self.path, 0o600)  # a commit that was cut short may have made it read-only
        self._fd = os.open(self.path, _OPEN)
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
            os.rename(self.path, self.layout.blob(digest))
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
        with suppress(OSError):
            _unlink(self.path)

    def _failed(self, error: OSError, doing: str) -> CarinaError:
        return files.failed(error, f"{doing} ref {self.ref!r} in {self.layout.root}")


def space() -> memoryview:
    """A buffer of this thread's own."""
    found: memoryview | None = getattr(_space, "buffer", None)
    if found is None:
        found = _space.buffer = memoryview(bytearray(files.CHUNK))
    return found


def _about(path: str) -> str:
    return path + files.ABOUT


def _unlink(path: str) -> None:
    """Remove an ingest: the bytes last, as what is known of them is of no use without them."""
    for part in (_about(path), path):
        with suppress(FileNotFoundError):
            os.unlink(part)


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _status(path: str) -> Status | None:
    """None where there is no ingest, or not all of it."""
    try:
        data = os.stat(path)
        with open(_about(path), "rb") as file:
            about = json.loads(file.read(_MAX_ABOUT))
        expected = about.get("expected")
        modified = files.moment(data.st_mtime)
        return Status(
            ref=about["ref"],
            offset=data.st_size,
            total=about.get("total", 0),
            expected=Digest(expected) if expected else None,
            started_at=datetime.fromisoformat(about["started_at"]),
            updated_at=modified,
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, AttributeError, TypeError, InvalidArgument):  # cut short by a power loss
        return None


def status(layout: Layout, ref: str) -> Status:
    """Raises NotFound."""
    found = _status(layout.ingest(ref))
    if found is None:
        raise NotFound(f"ref {ref!r}: not found")
    return found


def statuses(layout: Layout) -> list[Status]:
    """Every ingest, by ref."""
    found = (_status(f"{layout.ingests}/{name}") for name in os.listdir(layout.ingests) if "." not in name)
    return sorted((one for one in found if one is not None), key=lambda one: one.ref)


def remove(layout: Layout, ref: str) -> None:
    """Raises NotFound."""
    path = layout.ingest(ref)
    if _status(path) is None:
        raise NotFound(f"ref {ref!r}: not found")
    _unlink(path)
