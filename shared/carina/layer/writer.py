"""Changes to a layer: a PAX archive whose bytes depend on nothing but the changes, compressed and hashed on the way."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final

from carina.errors import Aborted, ResourceExhausted
from carina.layer.compare import Change, attributes
from carina.layer.compression import compressor
from carina.layer.tar import shown

_GATHERED: Final = 256 << 10
_PIECE: Final = 1 << 20
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_SECOND: Final = 1_000_000_000
_KINDS: Final = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}


class _Sink:
    """Bytes into a descriptor, counted and hashed."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._hash = hashlib.sha256(usedforsecurity=False)
        self.size = 0

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)
        self._write(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


class LayerWriter:
    """One layer into `output`. No time in it is later than `latest`, in nanoseconds, and whiteouts have that.

    Whatever module the compression takes is imported when this is made: `write` may be called where nothing can be.
    """

    def __init__(self, output: int, *, kind: str, latest: int | None) -> None:
        self._latest = latest
        self._outer = _Sink(lambda data: _write_all(output, data))
        compress, self._end = compressor(kind, self._outer.write)
        self._inner = _Sink(compress)

    def write(self, changes: Iterator[Change]) -> dict[str, str | int]:
        """Write all of it, and say what its digests and size are.

        Raises:
            ResourceExhausted: the disk is full.
            Aborted: a file changed while it was read.
        """
        buffer = bytearray()
        for change in changes:
            for piece in _entry(change, self._latest):
                buffer += piece
                if len(buffer) >= _GATHERED:
                    self._inner.write(bytes(buffer))
                    buffer.clear()
        self._inner.write(bytes(buffer) + bytes(1024))
        self._end()
        return {"digest": self._outer.digest, "size": self._outer.size, "uncompressed": self._inner.digest}


def _write_all(output: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(output, data) :]
    except BrokenPipeError as error:
        raise Aborted("the ingest that the layer goes into was closed") from error
    except OSError as error:
        raise ResourceExhausted(f"the layer can't be written: {(error.strerror or '').lower()}") from error


def _entry(change: Change, latest: int | None) -> Iterator[bytes]:
    status = change.status
    if status is None:
        directory, _, name = change.path.rpartition(b"/")
        path = (directory + b"/" if directory else b"") + b".wh." + name
        yield _header(path, kind=b"0", mode=0, mtime=latest or 0)
        return
    kind = b"1" if change.link is not None else _KINDS[stat.S_IFMT(status.st_mode)]
    regular = kind == b"0"
    if change.link is not None:
        link = change.link
    else:
        link = os.readlink(change.name, dir_fd=change.directory) if kind == b"2" else b""
    yield _header(
        change.path + b"/" if kind == b"5" else change.path,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        owner=(status.st_uid, status.st_gid),
        size=status.st_size if regular else 0,
        mtime=status.st_mtime_ns if latest is None else min(status.st_mtime_ns, latest),
        link=link,
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if kind in b"34" else None,
        xattrs=attributes(change.directory, change.name) if change.link is None else {},
    )
    if regular and status.st_size:
        yield from _data(change, status.st_size)


def _data(change: Change, size: int) -> Iterator[bytes]:
    descriptor = os.open(change.name, _FILE, dir_fd=change.directory)
    try:
        left = size
        while left:
            piece = os.read(descriptor, min(left, _PIECE))
            if not piece:
                raise Aborted(f"{shown(change.path)} became shorter while the layer was made")
            left -= len(piece)
            yield piece
    finally:
        os.close(descriptor)
    yield bytes(-size & 511)


def _header(
    path: bytes,
    *,
    kind: bytes,
    mode: int,
    owner: tuple[int, int] = (0, 0),
    size: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    device: tuple[int, int] | None = None,
    xattrs: dict[bytes, bytes] | None = None,
) -> bytes:
    """One header, after a PAX header with what doesn't fit or can't be told by it."""
    pax: dict[bytes, bytes] = {}
    if len(path) > 100 or not path.isascii():
        pax[b"path"] = path
    if len(link) > 100 or not link.isascii():
        pax[b"linkpath"] = link
    if size >= 1 << 33:
        pax[b"size"] = b"%d" % size
    for key, number in zip((b"uid", b"gid"), owner, strict=True):
        if number >= 1 << 21:
            pax[key] = b"%d" % number
    seconds, fraction = divmod(mtime, _SECOND)
    if fraction or not 0 <= seconds < 1 << 33:
        pax[b"mtime"] = _decimal(mtime)
    for name, value in sorted((xattrs or {}).items()):
        pax[b"SCHILY.xattr." + name] = value
    block = _block(path, kind=kind, mode=mode, owner=owner, size=size, seconds=seconds, link=link, device=device)
    if not pax:
        return block
    body = b"".join(_record(key, value) for key, value in sorted(pax.items()))
    announced = _block(b"PaxHeaders.0/" + path[-80:], kind=b"x", mode=0o644, size=len(body))
    return announced + body + bytes(-len(body) & 511) + block


def _block(
    path: bytes,
    *,
    kind: bytes,
    mode: int,
    owner: tuple[int, int] = (0, 0),
    size: int = 0,
    seconds: int = 0,
    link: bytes = b"",
    device: tuple[int, int] | None = None,
) -> bytes:
    uid, gid = (number if number < 1 << 21 else 0 for number in owner)
    fields = (
        path[:100].ljust(100, b"\0"),
        b"%07o\0" % mode,
        b"%07o\0" % uid,
        b"%07o\0" % gid,
        b"%011o\0" % (size if size < 1 << 33 else 0),
        b"%011o\0" % (seconds if 0 <= seconds < 1 << 33 else 0),
        b" " * 8,
        kind,
        link[:100].ljust(100, b"\0"),
        b"ustar\00000",
        bytes(64),
        b"%07o\0%07o\0" % device if device is not None else b"0000000\0" * 2,
        bytes(167),
    )
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _record(key: bytes, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE\\n`, where the length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def _decimal(mtime: int) -> bytes:
    sign = b"-" if mtime < 0 else b""
    seconds, fraction = divmod(abs(mtime), _SECOND)
    return sign + (b"%d.%09d" % (seconds, fraction)).rstrip(b"0").rstrip(b".")
