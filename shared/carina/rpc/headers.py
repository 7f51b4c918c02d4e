"""Blocks of HTTP/2 headers, written and read with as little work per call as repetition allows.

What we write never touches the peer's dynamic table, so equal headers are equal bytes, whatever was sent before;
they are encoded once. What we read is remembered by its bytes for as long as the dynamic table stays unchanged.
A gateway passes a `Headers` on as it came: the object carries its own encoding.
"""

import functools
import re
from typing import Final

import hpack
from hpack.exceptions import HPACKError
from hpack.table import HeaderTable

MAX_LIST: Final = 1 << 20
"""Bytes of headers accepted with one message (names, values and 32 for each)."""
HARD_LIMIT: Final = 4 << 20
"""Beyond this the connection is given up, for the state of compression is lost."""
_REMEMBERED: Final = 512
_LONG: Final = 2048
_FORBIDDEN: Final = re.compile(rb"[\0\r\n]")
_NAME: Final = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+")

Pair = tuple[bytes, bytes]


class Headers:
    """One block: immutable, with what is derived from it kept."""

    __slots__ = ("__dict__", "pairs")

    def __init__(self, pairs: tuple[Pair, ...]) -> None:
        self.pairs = pairs

    @functools.cached_property
    def block(self) -> bytes:
        """The encoded block."""
        return b"".join(_encoded(name, value) for name, value in self.pairs)

    @functools.cached_property
    def map(self) -> dict[str, str]:
        """Names to values; the first of a name that occurs more than once."""
        made: dict[str, str] = {}
        for name, value in self.pairs:
            made.setdefault(name.decode("ascii"), value.decode("utf-8", "replace"))
        return made

    @functools.cached_property
    def size(self) -> int:
        return sum(len(name) + len(value) + 32 for name, value in self.pairs)

    @functools.cached_property
    def valid(self) -> bool:
        """Whether names and values are such that no hop could read something else into them."""
        return all(_NAME.fullmatch(name) and not _FORBIDDEN.search(value) for name, value in self.pairs)

    def get(self, name: str) -> str | None:
        return self.map.get(name)


def make(*pairs: tuple[str, str]) -> Headers:
    return Headers(tuple((name.encode("ascii"), value.encode()) for name, value in pairs))


def _integer(value: int, bits: int, first: int) -> bytes:
    """RFC 7541, 5.1."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes((first | value,))
    out = bytearray((first | limit,))
    value -= limit
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@functools.lru_cache(maxsize=1024)
def _short(name: bytes, value: bytes) -> bytes:
    known = HeaderTable.STATIC_TABLE_MAPPING.get(name)
    if known is None:
        start = b"\x00" + _integer(len(name), 7, 0) + name
    elif value in known[1]:
        return _integer(known[1][value], 7, 0x80)
    else:
        start = _integer(known[0], 4, 0)
    return start + _integer(len(value), 7, 0) + value


def _encoded(name: bytes, value: bytes) -> bytes:
    """A literal that is not indexed, or a reference into the static table."""
    return _short(name, value) if len(value) < _LONG else _short.__wrapped__(name, value)


class Unreadable(Exception):
    """A block that breaks the rules of compression, or exceeds the hard limit: the connection can't go on."""


class _Table(HeaderTable):
    """A dynamic table that counts its changes."""

    def __init__(self) -> None:
        super().__init__()
        self.changes = 0

    def add(self, name: bytes, value: bytes) -> None:
        self.changes += 1
        super().add(name, value)


class Decoder:
    """Reads the blocks of one direction of one connection."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=HARD_LIMIT)
        self._table = self._decoder.header_table = _Table()
        self._known: dict[bytes, Headers] = {}
        self._changes = 0

    def decode(self, block: bytes) -> Headers:
        """Raises Unreadable."""
        known = self._known.get(block)
        if known is not None and self._changes == self._table.changes:
            return known
        try:
            pairs = tuple((bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True))
        except (HPACKError, ValueError, IndexError) as error:
            raise Unreadable(f"headers can't be read: {error}") from error
        made = Headers(pairs)
        if block and block[0] & 0xE0 == 0x20:  # a change of the table's size
            self._table.changes += 1
        if self._changes != self._table.changes:
            self._changes = self._table.changes
            self._known.clear()
        elif len(block) < _LONG:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[block] = made
        return made
