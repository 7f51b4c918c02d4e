"""The elements of protobuf's wire format: varints, fields to be skipped, timestamps.

Everything here refuses what is malformed: a varint of more than ten bytes, a length beyond the end, a group,
a field number that does not exist. A reader is given the bytes, a position and the end of what it may read.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

VARINT: Final = 0
FIXED64: Final = 1
DELIMITED: Final = 2
FIXED32: Final = 5

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_SECOND: Final = -62_135_596_800
"""0001-01-01T00:00:00Z, what Go sends for a time that is not set."""
LAST_SECOND: Final = 253_402_300_799
MAX_TAG: Final = (1 << 32) - 1
_U64: Final = (1 << 64) - 1


class Malformed(Exception):
    """Bytes that are no message of the wanted type."""


def make_varint(value: int) -> bytes:
    """Raises OverflowError outside of what 64 bits can hold."""
    if not -(1 << 63) <= value <= _U64:
        raise OverflowError("integer does not fit into 64 bits")
    value &= _U64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


SHORT: Final = tuple(make_varint(value) for value in range(1024))
"""The varints of small numbers, which nearly all tags and lengths are."""


def varint(value: int) -> bytes:
    return SHORT[value] if 0 <= value < 1024 else make_varint(value)


def read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The number at a position, and the position behind it."""
    result = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            if result > _U64:
                break
            return result, at
        shift += 7
        if shift > 63:
            break
    raise Malformed("a number is cut off or has more than 64 bits")


def skip(data: bytes, at: int, end: int, *, tag: int) -> int:
    """The position behind the value of a field that the message's type does not know."""
    if tag < 8 or tag > MAX_TAG:
        raise Malformed("there is no such field number")
    kind = tag & 7
    if kind == DELIMITED:
        length, at = read_varint(data, at, end)
        at += length
    elif kind == VARINT:
        _, at = read_varint(data, at, end)
    elif kind == FIXED32:
        at += 4
    elif kind == FIXED64:
        at += 8
    else:
        raise Malformed("groups are not supported")
    if at > end:
        raise Malformed("a field is cut off")
    return at


def make_timestamp(moment: datetime) -> bytes:
    """A google.protobuf.Timestamp."""
    if moment.tzinfo is None:
        raise ValueError(f"moment {moment} has no time zone")
    offset = moment - EPOCH
    seconds, nanos = offset.days * 86400 + offset.seconds, offset.microseconds * 1000
    out = b"\x08" + varint(seconds) if seconds else b""
    return out + b"\x10" + varint(nanos) if nanos else out


def read_timestamp(data: bytes, at: int, end: int) -> datetime:
    """A google.protobuf.Timestamp, to the microsecond."""
    seconds = nanos = 0
    while at < end:
        tag, at = read_varint(data, at, end)
        if tag == 8:
            seconds, at = read_varint(data, at, end)
        elif tag == 16:
            nanos, at = read_varint(data, at, end)
        elif tag >> 3 in (1, 2):
            raise Malformed("a timestamp's field has the wrong type")
        else:
            at = skip(data, at, end, tag=tag)
    if seconds >> 63:
        seconds -= 1 << 64
    if not FIRST_SECOND <= seconds <= LAST_SECOND or nanos > 999_999_999:
        raise Malformed("a timestamp is outside of the years 1 to 9999")
    return EPOCH + timedelta(seconds=seconds, microseconds=nanos // 1000)


def delimited(tag: bytes, value: bytes) -> bytes:
    size = len(value)
    return tag + (SHORT[size] if size < 1024 else make_varint(size)) + value
