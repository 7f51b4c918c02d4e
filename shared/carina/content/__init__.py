"""Content: immutable blobs named by their digest, and the ingests that become blobs.

`ContentStore` is the interface at every level: contentd's files, metadatad's namespaced view, a socket, a client.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, Self, runtime_checkable

from carina.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What is known of a committed blob."""

    digest: Digest
    size: int = 0
    """Bytes."""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What is known of an ingest."""

    ref: str
    offset: int = 0
    """Bytes written so far."""
    total: int = 0
    """Bytes expected in all; 0 where unknown."""
    expected: Digest | None = None
    started_at: datetime | None = None
    updated_at: datetime | None = None


class Reader(Protocol):
    """Random access to one committed blob. It stays readable while open, even if the blob is deleted meanwhile."""

    @property
    def size(self) -> int:
        """Bytes in the blob."""

    async def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes at `offset`, fewer only at the end; empty at or after it."""

    async def close(self) -> None: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *args: object) -> None: ...


class Writer(Protocol):
    """One ingest, locked by its ref until closed. What was written survives close and restart, to be resumed."""

    @property
    def status(self) -> Status:
        """The state after the last completed call."""

    async def write(self, data: bytes) -> None:
        """Append at the current offset.

        Raises:
            ResourceExhausted: the disk is full; the ingest stays usable.
        """

    async def truncate(self, offset: int) -> None:
        """Forget everything from `offset` on.

        Raises:
            OutOfRange: the ingest is shorter than that.
        """

    async def commit(
        self, *, size: int = 0, expected: Digest | None = None, labels: Mapping[str, str] | None = None
    ) -> Digest:
        """Make the ingest a blob, durably, and close the writer. The ingest is gone afterwards, whatever the result
        of the checks was, except where `FailedPrecondition` is raised.

        Raises:
            FailedPrecondition: size or digest is not what was expected.
            AlreadyExists: the blob is there already; the ingest is removed.
        """

    async def digest(self) -> Digest:
        """Digest of what was written so far."""

    async def close(self) -> None:
        """Unlock the ref. Idempotent; keeps the ingest."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *args: object) -> None: ...


class ContentStore(Protocol):
    """Blobs and ingests."""

    async def info(self, digest: Digest) -> Info:
        """Raises NotFound."""

    async def update(self, info: Info, fields: Sequence[str] = ()) -> Info:
        """Change labels; the only mutable field. `fields` is a field mask: `labels` or `labels.KEY`; all if empty.

        Raises:
            NotFound: no such blob.
            InvalidArgument: a field that can't be changed, or a label over its limit.
        """

    def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        """Every blob that matches one of the filters (`carina.filters`); all without filters."""

    async def delete(self, digest: Digest) -> None:
        """Raises NotFound."""

    async def reader(self, digest: Digest) -> Reader:
        """Open a blob. Raises NotFound."""

    async def status(self, ref: str) -> Status:
        """Raises NotFound."""

    async def statuses(self, filters: Sequence[str] = ()) -> list[Status]:
        """Every ingest that matches."""

    async def writer(self, ref: str, *, total: int = 0, expected: Digest | None = None) -> Writer:
        """Open an ingest, new or to be resumed, and lock its ref.

        Raises:
            AlreadyExists: a blob with the expected digest is there.
            Unavailable: somebody else writes to this ref.
            InvalidArgument: the ref is empty or too long.
        """

    async def abort(self, ref: str) -> None:
        """Remove an ingest. Raises NotFound."""


@runtime_checkable
class DescriptorLane(Protocol):
    """What a store offers besides where caller and store share a kernel: descriptors instead of messages."""

    async def open_blob(self, digest: Digest) -> tuple[int, int]:
        """A read-only descriptor of a blob (the caller closes it) and the blob's size in bytes. Raises NotFound."""

    async def open_ingest(
        self, ref: str, *, total: int = 0, expected: Digest | None = None, offset: int | None = None
    ) -> tuple[int, int]:
        """The write end of a pipe into an ingest (the caller closes it), and the offset where writing goes on.

        The ref is locked until the pipe is closed and drained; a `writer` of the same ref waits for that.
        With `offset`, bytes of the ingest from there on are forgotten first.

        Raises:
            AlreadyExists: a blob with the expected digest is there.
            Unavailable: somebody else writes to this ref.
        """


@runtime_checkable
class SizedReaders(Protocol):
    """What a store offers besides where opening a blob is a call only because of its size."""

    def sized_reader(self, digest: Digest, size: int) -> Reader:
        """A reader of a blob whose size the caller knows. That there is no such blob is told by its reads."""
