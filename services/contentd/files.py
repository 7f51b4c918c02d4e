"""Blobs on disk: plain functions that block, to be run in threads.

    <root>/lock                  held by the one process that owns the directory
    <root>/blobs/<alg>/<hex>     0444; its time of modification is the time of the commit
    <root>/labels/<alg>/<hex>    JSON, where a blob has had labels; its time of modification is that of the last update
    <root>/ingest/<sha256>       one ingest, and beside it what is known of it (`contentd.ingests`)
    <root>/quarantine/           damaged blobs that were taken out (`contentd.verify`)

A file of labels without its blob means nothing: a commit writes or removes it before the blob gets its name.
A name comes from a validated digest or is a hash, never from outside.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from carina import faults
from carina.content import Info
from carina.digest import HEX_LENGTHS, Digest
from carina.errors import CarinaError, DataLoss, FailedPrecondition, InvalidArgument, NotFound
from carina.linux.errnos import translated

CHUNK: Final = 1 << 20
CLAIM_SECONDS: Final = 10.0
"""How long a predecessor that still drains is waited for."""
TEMPORARY: Final = ".new"
ABOUT: Final = ".json"
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are."""

    root: str

    @property
    def ingests(self) -> str:
        return f"{self.root}/ingest"

    @property
    def quarantine(self) -> str:
        return f"{self.root}/quarantine"

    def blobs(self, algorithm: str) -> str:
        return f"{self.root}/blobs/{algorithm}"

    def blob(self, digest: Digest) -> str:
        return f"{self.root}/blobs/{digest.algorithm}/{digest.hex}"

    def labels(self, digest: Digest) -> str:
        return f"{self.root}/labels/{digest.algorithm}/{digest.hex}"

    def ingest(self, ref: str) -> str:
        return f"{self.root}/ingest/{hashlib.sha256(ref.encode()).hexdigest()}"


def failed(error: OSError, doing: str) -> CarinaError:
    """The domain error; a disk that can't read or write what it holds is a loss of data."""
    if error.errno == errno.EIO:
        return DataLoss(f"{doing}: the disk reports an input/output error")
    return translated(error, doing)


def not_found(digest: Digest) -> NotFound:
    return NotFound(f"content {digest}: not found")


def prepare(layout: Layout) -> int:
    """Make the directories, take ownership of them and return the lock's descriptor.

    Raises:
        FailedPrecondition: another process owns the directory.
    """
    try:
        os.makedirs(layout.root, mode=0o700, exist_ok=True)
        os.chmod(layout.root, 0o700)
        for algorithm in HEX_LENGTHS:
            os.makedirs(layout.blobs(algorithm), mode=0o700, exist_ok=True)
            os.makedirs(f"{layout.root}/labels/{algorithm}", mode=0o700, exist_ok=True)
        os.makedirs(layout.ingests, mode=0o700, exist_ok=True)
        for directory in ("blobs", "labels", "."):
            flush_directory(os.path.join(layout.root, directory))
        parent = os.path.dirname(os.path.abspath(layout.root))
        if os.access(parent, os.R_OK):  # otherwise whoever made our directory there has to make its name last
            flush_directory(parent)
        lock = _claim(layout)
        for algorithm in HEX_LENGTHS:
            # A killed predecessor may have named blobs, which we are about to say are there, and not got to flush.
            flush_directory(layout.blobs(algorithm))
            flush_directory(f"{layout.root}/labels/{algorithm}")
    except OSError as error:
        raise failed(error, f"preparing {layout.root}") from error
    return lock


def _claim(layout: Layout) -> int:
    fd = os.open(f"{layout.root}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    limit = time.monotonic() + CLAIM_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > limit:
                os.close(fd)
                raise FailedPrecondition(f"content store {layout.root} is owned by another process") from None
            time.sleep(0.05)
        else:
            return fd


def remove_leftovers(layout: Layout) -> None:
    """Remove what a crash left half made."""
    for algorithm in HEX_LENGTHS:
        directory = f"{layout.root}/labels/{algorithm}"
        for name in os.listdir(directory):
            if name.endswith(TEMPORARY) or not os.path.exists(f"{layout.blobs(algorithm)}/{name}"):
                os.unlink(f"{directory}/{name}")
    for name in os.listdir(layout.ingests):
        path = f"{layout.ingests}/{name}"
        whole = path.removesuffix(ABOUT)
        if not (os.path.isfile(whole) and os.path.isfile(whole + ABOUT)):
            _discard(path)


def _discard(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        os.unlink(path)


def flush_directory(path: str) -> None:
    """Make the names in a directory durable."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise failed(error, f"flushing {path}") from error


def write_file(path: str, data: bytes) -> None:
    """Replace a small file: the old or the new one is there, whenever the power goes."""
    temporary = path + TEMPORARY
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    except OSError:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    faults.point("contentd.labels.written")
    os.rename(temporary, path)


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def exists(layout: Layout, digest: Digest) -> bool:
    return os.path.exists(layout.blob(digest))


def info(layout: Layout, digest: Digest) -> Info:
    """Raises NotFound."""
    try:
        found = os.stat(layout.blob(digest))
        labels, updated = _labels(layout, digest)
    except FileNotFoundError:
        raise not_found(digest) from None
    except OSError as error:
        raise failed(error, f"content {digest}") from error
    created = moment(found.st_mtime)
    return Info(
        digest=digest,
        size=found.st_size,
        created_at=created,
        updated_at=max(created, moment(updated)),
        labels=labels,
    )


def infos(layout: Layout, digests: Sequence[Digest]) -> list[Info]:
    """Those of the blobs that (still) exist."""

    def present() -> Iterator[Info]:
        for digest in digests:
            try:
                yield info(layout, digest)
            except NotFound:
                pass

    return list(present())


def digests(layout: Layout) -> list[Digest]:
    """Every blob's name, sorted; files of other names are nobody's."""
    result = []
    for algorithm in HEX_LENGTHS:
        for name in sorted(os.listdir(layout.blobs(algorithm))):
            try:
                result.append(Digest(f"{algorithm}:{name}"))
            except InvalidArgument:
                pass
    return result


def _labels(layout: Layout, digest: Digest) -> tuple[dict[str, str], float]:
    path = layout.labels(digest)
    try:
        fd = os.open(path, _READ)
    except FileNotFoundError:
        return {}, 0.0
    with open(fd, "rb") as file:
        updated = os.fstat(fd).st_mtime
        try:
            labels = json.loads(file.read())
        except ValueError as error:
            raise DataLoss(f"content {digest}: the file of its labels {path} is damaged") from error
    return labels, updated


def write_labels(layout: Layout, digest: Digest, labels: Mapping[str, str]) -> None:
    """Durable once the directory is flushed as well."""
    try:
        write_file(layout.labels(digest), json.dumps(dict(labels), ensure_ascii=False).encode())
    except OSError as error:
        raise failed(error, f"writing the labels of content {digest} in {layout.root}") from error


def remove_labels(layout: Layout, digest: Digest) -> None:
    try:
        os.unlink(layout.labels(digest))
    except FileNotFoundError:
        pass


def delete(layout: Layout, digest: Digest) -> None:
    """Remove a blob and its labels. Raises NotFound."""
    try:
        os.unlink(layout.blob(digest))
    except FileNotFoundError:
        raise not_found(digest) from None
    except OSError as error:
        raise failed(error, f"deleting content {digest}") from error
    faults.point("contentd.delete.unlinked")
    remove_labels(layout, digest)
    faults.point("contentd.delete.unlabelled")


def open_blob(layout: Layout, digest: Digest) -> tuple[int, int]:
    """A read-only descriptor and the size. Raises NotFound."""
    try:
        fd = os.open(layout.blob(digest), _READ)
    except FileNotFoundError:
        raise not_found(digest) from None
    except OSError as error:
        raise failed(error, f"opening content {digest}") from error
    return fd, os.fstat(fd).st_size


def hashed(path: str, algorithm: str) -> str:
    """Hex digest of a file's bytes."""
    with Path(path).open("rb", buffering=0) as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
