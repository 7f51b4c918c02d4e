"""Blocks of HTTP/2 headers, written and read with as little work per call as repetition allows.

What we write never touches the peer's dynamic table, so equal headers are equal bytes, whatever was sent before;
they are encoded once. What we read is remembered by its bytes for as long as the dynamic table stays unchanged.
A gateway passes a `Headers` on as it came: the object carries its own encoding.

What differs in every call, its request id, is written last and by itself, so that all before it still repeats.
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

REQUEST: Final = "x-request-id"
"""The header of a call's request id, known by that name to proxies and tracing tools."""
ID_LENGTH: Final = 16
_REQUEST: Final = REQUEST.encode()
_TAIL: Final = bytes((0, len(_REQUEST))) + _REQUEST + bytes((ID_LENGTH,))
"""A literal that is not indexed, with neither name nor value compressed (RFC 7541, 6.2.2), up to its value."""
_TAIL_SIZE: Final = len(_TAIL) + ID_LENGTH

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

    def identified(self, value: bytes) -> "Headers":
        """The same with a request id at its end."""
        return _Identified(self, value)

    def traced(self, traceparent: str) -> "Headers":
        """The same with this trace in the place of another."""
        pairs = tuple(pair for pair in self.pairs if pair[0] not in (b"traceparent", _REQUEST))
        made = Headers((*pairs, (b"traceparent", traceparent.encode())))
        request = self.get(REQUEST)
        return made if request is None else made.identified(request.encode())

    def without(self, name: bytes) -> "Headers":
        """The same but for a header."""
        return Headers(tuple(pair for pair in self.pairs if pair[0] != name))


class _Identified(Headers):
    """Headers that many calls share, and what one of them has at their end: derived only where it is asked for."""

    __slots__ = ("_base", "_value")

    def __init__(self, base: Headers, value: bytes) -> None:
        self._base = base
        self._value = value

    @property
    def pairs(self) -> tuple[Pair, ...]:  # type: ignore[override]  # nobody writes it
        return (*self._base.pairs, (_REQUEST, self._value))

    @property
    def block(self) -> bytes:
        value = self._value
        tail = _TAIL + value if len(value) == ID_LENGTH else _short.__wrapped__(_REQUEST, value)
        return self._base.block + tail

    @property
    def size(self) -> int:
        return self._base.size + len(_REQUEST) + len(self._value) + 32

    @property
    def valid(self) -> bool:
        return self._base.valid and _FORBIDDEN.search(self._value) is None

    def get(self, name: str) -> str | None:
        found = self._base.get(name)
        return self._value.decode("utf-8", "replace") if found is None and name == REQUEST else found


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
        unchanged = self._changes == self._table.changes
        known = self._known.get(block) if unchanged else None
        if known is not None:
            return known
        start = len(block) - _TAIL_SIZE
        tailed = start > 0 and block.startswith(_TAIL, start)
        if tailed and unchanged and (known := self._known.get(block[:start])) is not None:
            return known.identified(block[-ID_LENGTH:])
        return self._read(block, tailed=tailed)

    def _read(self, block: bytes, *, tailed: bool) -> Headers:
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
            # The last header is the literal at the block's end, so what is before it is a block of its own.
            if tailed and pairs[-1] == (_REQUEST, block[-ID_LENGTH:]):
                self._known[block[:-_TAIL_SIZE]] = Headers(pairs[:-1])
            else:
                self._known[block] = made
        return made
