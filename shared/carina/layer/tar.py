"""A streaming reader of tar archives: v7, ustar, PAX and GNU, with sparse files.

It reads headers the way Go's archive/tar does, because that is what decides what a layer means elsewhere:
the size in a PAX header governs both the data and where the next header is; global PAX headers are skipped;
links, devices and directories have no data. Whatever it is fed, it holds one chunk and at most a mebibyte of headers.
"""

from collections.abc import Callable
from typing import Final
from zlib import adler32

from carina.errors import InvalidArgument
from carina.layer import sparse

MAX_SPECIAL: Final = 1 << 20
"""Bytes of a long name, PAX header or sparse map."""
_ZERO: Final = bytes(512)
_BLANKS: Final = b" " * 8
_MAX_SIZE: Final = 1 << 62
_VIEWED: Final = 4096
"""Bytes from which on a view costs less than a copy."""
_MAX_ID: Final = (1 << 32) - 2
_WITH_DATA: Final = frozenset(b"0\0007S")
_KNOWN: Final = frozenset(b"0\0001234567S")


class Entry:
    """One member. Names are bytes as they stand in the archive, nothing is normalised."""

    __slots__ = (
        "gid",
        "kind",
        "link",
        "major",
        "minor",
        "mode",
        "mtime",
        "name",
        "real_size",
        "segments",
        "size",
        "uid",
        "xattrs",
    )

    def __init__(self) -> None:
        self.name = b""
        self.kind = "0"
        """As in tar: file 0, hard link 1, symbolic link 2, character device 3, block 4, directory 5, FIFO 6."""
        self.link = b""
        self.size = 0
        """Bytes of data in the archive."""
        self.mode = self.uid = self.gid = 0
        self.mtime = 0
        """Nanoseconds since 1970."""
        self.major = self.minor = 0
        self.xattrs: list[tuple[bytes, bytes]] | None = None
        self.segments: list[tuple[int, int]] | None = None
        """Of a sparse file: where in the file the data goes, as pairs of offset and length."""
        self.real_size = 0
        """Of a sparse file: its size with the holes."""


class Malformed(InvalidArgument):
    """The archive breaks the rules of tar."""


class Reader:
    """Reads entries from chunks. `pull` returns the next chunk, empty at the end of the stream."""

    def __init__(self, pull: Callable[[], bytes]) -> None:
        self._pull = pull
        self._chunk = b""
        self._at = 0
        self._left = 0
        self._pad = 0
        self._names: dict[bytes, int] = {}

    def next(self) -> Entry | None:
        """The next entry; what was not read of the one before is skipped. None at the end of the archive."""
        pax: dict[bytes, bytes] | None = None
        name: bytes | None = None
        link: bytes | None = None
        while True:
            if self._left or self._pad:
                self._skip(self._left + self._pad)
                self._left = self._pad = 0
            block = self._header()
            if block is None:
                if pax is not None or name is not None or link is not None:
                    raise Malformed("the layer's archive ends after a header that announces another")
                return None
            kind = block[156]
            if kind == 120:  # x
                pax = self._pax(block)
            elif kind == 103:  # g
                self._special(block)
            elif kind == 76:  # L
                name = self._special(block).partition(b"\0")[0]
            elif kind == 75:  # K
                link = self._special(block).partition(b"\0")[0]
            else:
                return self._entry(block, pax=pax, name=name, link=link)

    def read(self, count: int) -> bytes | memoryview:
        """Up to `count` bytes of the entry's data, in as large pieces as they come; empty at its end.

        Large pieces are views of the chunk they came in, and keep it in memory as long as they are kept.
        """
        count = min(count, self._left)
        if not count:
            return b""
        if self._at == len(self._chunk) and not self._more():
            raise Malformed("the layer's archive is cut off in the middle of a file")
        at, end = self._at, min(self._at + count, len(self._chunk))
        piece = self._chunk[at:end] if end - at < _VIEWED else memoryview(self._chunk)[at:end]
        self._at = end
        self._left -= end - at
        return piece

    def drain(self) -> None:
        """Read what follows the archive."""
        while self._more():
            pass

    def _more(self) -> bool:
        self._chunk = self._pull()
        self._at = 0
        return bool(self._chunk)

    def _take(self, count: int) -> bytes:
        """Exactly `count` bytes, or fewer at the end of the stream."""
        at = self._at
        end = at + count
        if end <= len(self._chunk):
            self._at = end
            return self._chunk[at:end]
        pieces = [self._chunk[at:]]
        have = len(pieces[0])
        while have < count:
            if not self._more():
                break
            piece = self._chunk[: count - have]
            self._at = len(piece)
            have += len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def _skip(self, count: int) -> None:
        while True:
            have = len(self._chunk) - self._at
            if count <= have:
                self._at += count
                return
            count -= have
            if not self._more():
                raise Malformed("the layer's archive is cut off in the middle of a file")

    def _header(self) -> bytes | None:
        block = self._take(512)
        if block == _ZERO:
            second = self._take(512)
            if second in (_ZERO, b""):
                return None
            raise Malformed("the layer's archive has a header of zeros in its middle")
        if not block:
            return None
        if len(block) < 512:
            raise Malformed("the layer's archive is cut off in the middle of a header")
        expected = _octal(block[148:156])
        # adler32's lower half is one more than the sum of the bytes, modulo 65521.
        if (adler32(block[156:], adler32(_BLANKS, adler32(block[:148]))) & 0xFFFF) != (expected + 1) % 65521:
            signed = sum(b - 256 if b > 127 else b for b in block[:148] + _BLANKS + block[156:])
            if signed != expected:
                raise Malformed("the layer's archive has a header with a wrong checksum")
        return block

    def _special(self, block: bytes) -> bytes:
        size = _number(block[124:136], "size")
        if not 0 <= size <= MAX_SPECIAL:
            raise Malformed(f"the layer's archive has a special header of {size} bytes, more than {MAX_SPECIAL}")
        body = self._take(size + (-size & 511))
        if len(body) < size + (-size & 511):
            raise Malformed("the layer's archive is cut off in the middle of a header")
        return body[:size]

    def _pax(self, block: bytes) -> dict[bytes, bytes]:
        records: dict[bytes, bytes] = {}
        for key, value in _records(self._special(block)):
            if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                # Version 0.0 repeats the keys, one pair for a segment: gathered to the form of version 0.1.
                known = records.get(b"GNU.sparse.map")
                records[b"GNU.sparse.map"] = value if known is None else known + b"," + value
            else:
                records[key] = value
        return records

    def _cached(self, field: bytes, what: str) -> int:
        """Modes and owners repeat."""
        number = self._names.get(field)
        if number is None:
            number = _number(field, what)
            if len(self._names) < 4096:
                self._names[field] = number
        return number

    def _entry(self, block: bytes, *, pax: dict[bytes, bytes] | None, name: bytes | None, link: bytes | None) -> Entry:
        entry = Entry()
        entry.name = block[:100].partition(b"\0")[0] if name is None else name
        magic = block[257:265]
        if magic == b"ustar\00000" and name is None and block[345]:
            prefix = block[345:476] if block[508:512] == b"tar\0" else block[345:500]
            entry.name = prefix.partition(b"\0")[0] + b"/" + entry.name
        entry.mode = self._cached(block[100:108], "mode") & 0o7777
        entry.uid = self._cached(block[108:116], "owner")
        entry.gid = self._cached(block[116:124], "group")
        entry.size = _number(block[124:136], "size")
        entry.mtime = self._cached(block[136:148], "time") * 1_000_000_000
        kind = block[156]
        if kind not in _KNOWN:
            raise Malformed(f"{shown(entry.name)} in the layer is of a type ({kind:#x}) that layers don't have")
        if link is not None:
            entry.link = link
        elif kind in b"12":
            entry.link = block[157:257].partition(b"\0")[0]
        if kind in b"34" and magic[:5] == b"ustar":
            entry.major = _number(block[329:337], "device")
            entry.minor = _number(block[337:345], "device")
        if pax is not None:
            _override(entry, pax)
        if entry.size < 0 or entry.size > _MAX_SIZE:
            raise Malformed(f"{shown(entry.name)} in the layer has an impossible size")
        if not (0 <= entry.uid <= _MAX_ID and 0 <= entry.gid <= _MAX_ID):
            raise Malformed(f"{shown(entry.name)} in the layer has an impossible owner")
        self._set_kind(entry, kind)
        if kind in _WITH_DATA:
            self._left = entry.size
            self._pad = -entry.size & 511
            if kind == 83 or (pax is not None and b"GNU.sparse.realsize" in pax) or (pax and b"GNU.sparse.size" in pax):
                self._map(entry, block, pax)
        else:
            entry.size = 0
        return entry

    def _set_kind(self, entry: Entry, kind: int) -> None:
        if kind == 0:
            entry.kind = "5" if entry.name.endswith(b"/") else "0"
        else:
            entry.kind = "0" if kind in b"7S" else chr(kind)

    def _map(self, entry: Entry, block: bytes, pax: dict[bytes, bytes] | None) -> None:
        """Read a sparse file's map, from wherever its format keeps it."""
        if block[156] == 83:
            segments, entry.real_size = sparse.old_gnu(block, self._block, _number)
        else:
            assert pax is not None
            entry.name = pax.get(b"GNU.sparse.name", entry.name)
            entry.real_size = sparse.decimal(pax.get(b"GNU.sparse.realsize", pax.get(b"GNU.sparse.size", b"")))
            if pax.get(b"GNU.sparse.major") == b"1" and pax.get(b"GNU.sparse.minor") == b"0":
                segments = sparse.in_data(self._data_block)
                entry.size = self._left
            else:
                segments = sparse.in_header(pax.get(b"GNU.sparse.map", b""))
        entry.segments = sparse.checked(segments, size=entry.size, real_size=entry.real_size)

    def _block(self) -> bytes:
        block = self._take(512)
        if len(block) < 512:
            raise Malformed("the layer's archive is cut off in the middle of a header")
        return block

    def _data_block(self) -> bytes:
        if self._left < 512:
            raise Malformed("the layer has a sparse file with a map that is cut off")
        self._left -= 512
        return self._block()


def shown(name: bytes) -> str:
    """A name as an error shows it."""
    text = name.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 200 else text[:200] + "…")


def _octal(field: bytes) -> int:
    text = field.strip(b" \0")
    if not text.isdigit():
        text = text.partition(b"\0")[0].rstrip(b" ")
        if not text:
            return 0
        if not text.isdigit():
            raise Malformed("the layer's archive has a header with a number that is none")
    try:
        return int(text, 8)
    except ValueError:
        raise Malformed("the layer's archive has a header with a number that is none") from None


def _number(field: bytes, what: str) -> int:
    """Octal text, or binary where the first bit is set (GNU's base-256)."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            number = int.from_bytes(field, "big", signed=True)
        else:
            number = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if not -(1 << 63) <= number < 1 << 63:
            raise Malformed(f"the layer's archive has a header with a {what} out of range")
        return number
    return _octal(field)


def _records(body: bytes) -> list[tuple[bytes, bytes]]:
    """The records of a PAX header: length in decimal, blank, key, equals sign, value, newline."""
    records = []
    at, end = 0, len(body)
    while at < end:
        blank = body.find(b" ", at, at + 8)
        digits = body[at:blank]
        if blank < 0 or not digits.isdigit():
            raise Malformed("the layer's archive has a PAX header that is not in order")
        stop = at + int(digits)
        equals = body.find(b"=", blank, stop)
        if stop > end or stop <= blank or body[stop - 1] != 10 or equals < 0 or equals == blank + 1:
            raise Malformed("the layer's archive has a PAX header that is not in order")
        records.append((body[blank + 1 : equals], body[equals + 1 : stop - 1]))
        at = stop
    return records


def _override(entry: Entry, pax: dict[bytes, bytes]) -> None:
    for key, value in pax.items():
        if key.startswith(b"SCHILY.xattr."):
            if entry.xattrs is None:
                entry.xattrs = []
            entry.xattrs.append((key[13:], value))
        elif not value:
            # An empty value takes back what a global header said: we follow none.
            continue
        elif key == b"path":
            entry.name = _text(value)
        elif key == b"linkpath":
            entry.link = _text(value)
        elif key == b"size":
            entry.size = sparse.decimal(value)
        elif key == b"uid":
            entry.uid = sparse.decimal(value)
        elif key == b"gid":
            entry.gid = sparse.decimal(value)
        elif key == b"mtime":
            entry.mtime = _time(value)


def _text(value: bytes) -> bytes:
    if b"\0" in value:
        raise Malformed("the layer's archive has a name with a NUL in a PAX header")
    return value


def _time(value: bytes) -> int:
    """Nanoseconds of a decimal fraction of seconds."""
    negative = value.startswith(b"-")
    seconds, _, fraction = value.removeprefix(b"-").partition(b".")
    if not seconds.isdigit() or (fraction and not fraction.isdigit()) or len(seconds) > 20:
        raise Malformed("the layer's archive has a PAX header with a time that is none")
    nanoseconds = int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
    return -nanoseconds if negative else nanoseconds
