"""The record of a disk: a file of everything that was written to it, in order, and disks rebuilt from it.

An entry is a header (kind, offset, length) and, for a write, the bytes. It is in the file before the kernel gets its
answer, so the file's length is a moment: what was acknowledged before lies below it.

A disk that loses power keeps every write that a flush has followed. Of the writes since the last flush it keeps any
subset, torn at the borders of its sectors: a disk has a cache, and writes from it in an order of its own.
"""

import os
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_HEADER: Final = struct.Struct("<BQQ")
WRITE, ZERO, FLUSH = 1, 2, 3
SECTORS: Final = (512, 4096)
_PIECE: Final = 64 << 10
_ZEROS: Final = bytes(_PIECE)


@dataclass(frozen=True, slots=True)
class Entry:
    kind: int
    offset: int
    length: int
    data: int
    """Where the bytes are in the record."""
    end: int
    """The moment at which the entry was there."""


class Recorder:
    """`fuse.Backing`: an image that writes down what happens to it."""

    def __init__(self, image: Path, record: Path) -> None:
        self._image = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self._image).st_size

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._image, length, offset)

    def write(self, offset: int, data: memoryview) -> None:
        _pwrite(self._image, data, offset)
        os.writev(self._record, [_HEADER.pack(WRITE, offset, len(data)), data])

    def zero(self, offset: int, length: int) -> None:
        _zero(self._image, offset, length)
        os.write(self._record, _HEADER.pack(ZERO, offset, length))

    def flush(self) -> None:
        os.write(self._record, _HEADER.pack(FLUSH, 0, 0))


def entries(record: Path) -> Iterator[Entry]:
    with record.open("rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            kind, offset, length = _HEADER.unpack(header)
            start = file.tell()
            end = file.seek(length if kind == WRITE else 0, os.SEEK_CUR)
            yield Entry(kind, offset, length, start, end)


class Replay:
    """A disk that goes through its record: `advance` to an entry, then `cut` the power there."""

    def __init__(self, base: Path, record: Path, work: Path) -> None:
        self._entries = list(entries(record))
        self._record = os.open(record, os.O_RDONLY | os.O_CLOEXEC)
        self._safe = work / "safe"
        copy_sparse(base, self._safe)
        self._applied = 0

    def close(self) -> None:
        os.close(self._record)
        self._safe.unlink(missing_ok=True)

    def choose(self, chance: random.Random, count: int, *, after: int, before: int) -> list[int]:
        """Numbers of entries after which to cut, in order; half of them where much waits for a flush."""
        inside = [number for number, entry in enumerate(self._entries) if after <= entry.end <= before]
        full = [number - 1 for number in inside if self._entries[number].kind == FLUSH and number - 1 in set(inside)]
        drawn = [chance.choice(full if full and turn % 2 else inside) for turn in range(count)] if inside else []
        return sorted(drawn)

    def cut(self, number: int, chance: random.Random, target: Path) -> tuple[int, int, int]:
        """Write the disk as it may be found when the power goes after an entry.

        Returns the moment, and how many of the writes since the last flush there were and how many were kept whole.
        Entries must be given in order.
        """
        flushed = self._applied
        for index in range(self._applied, number + 1):
            if self._entries[index].kind == FLUSH:
                flushed = index + 1
        self._apply(self._safe, self._entries[self._applied : flushed])
        self._applied = flushed
        copy_sparse(self._safe, target)
        waiting = self._entries[flushed : number + 1]
        kept = self._keep_some(target, waiting, chance)
        return self._entries[number].end, len(waiting), kept

    def _apply(self, image: Path, entries: Sequence[Entry]) -> None:
        with _opened(image) as fd:
            for entry in entries:
                self._write(fd, entry, 0, entry.length)

    def _keep_some(self, image: Path, waiting: Sequence[Entry], chance: random.Random) -> int:
        """Apply a subset, some of it in part. How likely a write is kept is itself a matter of chance."""
        likely, torn, sector = (
            chance.choice((0.0, 0.1, 0.5, 0.9, 1.0)),
            chance.choice((0.0, 0.3)),
            chance.choice(SECTORS),
        )
        kept = 0
        with _opened(image) as fd:
            for entry in waiting:
                if chance.random() >= likely:
                    continue
                tear = chance.random() < torn
                kept += not tear
                if not tear:
                    self._write(fd, entry, 0, entry.length)
                    continue
                for start in range(0, entry.length, sector):
                    if chance.random() < 0.5:
                        self._write(fd, entry, start, min(sector, entry.length - start))
        return kept

    def _write(self, image: int, entry: Entry, start: int, length: int) -> None:
        if entry.kind == WRITE:
            _pwrite(image, memoryview(os.pread(self._record, length, entry.data + start)), entry.offset + start)
        elif entry.kind == ZERO:
            _zero(image, entry.offset + start, length)


class _opened:
    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *args: object) -> None:
        os.close(self._fd)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file, with holes where it has zeros. Every byte is read: what SEEK_DATA says of a busy file may lag."""
    with source.open("rb", buffering=0) as old, target.open("wb", buffering=0) as new:
        new.truncate(os.fstat(old.fileno()).st_size)
        at = 0
        while piece := old.read(_PIECE):
            if piece != _ZEROS[: len(piece)]:
                _pwrite(new.fileno(), memoryview(piece), at)
            at += len(piece)


def _pwrite(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count


def _zero(fd: int, offset: int, length: int) -> None:
    piece = bytes(min(length, 1 << 20))
    for at in range(0, length, len(piece)):
        _pwrite(fd, memoryview(piece)[: length - at], offset + at)
