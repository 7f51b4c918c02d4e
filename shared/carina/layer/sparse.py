"""The maps of sparse files in tar: GNU's old format and PAX versions 0.0, 0.1 and 1.0."""

from collections.abc import Callable
from typing import Final

from carina.errors import InvalidArgument

_MAX_SEGMENTS: Final = 1 << 17
_MAX_DIGITS: Final = 19

Segments = list[tuple[int, int]]


def decimal(value: bytes) -> int:
    """A number as PAX headers and maps write it.

    Raises:
        InvalidArgument: it has other characters than digits, or too many of them.
    """
    if not value.isdigit() or len(value) > _MAX_DIGITS:
        raise InvalidArgument("the layer's archive has a PAX header with a number that is none")
    return int(value)


def old_gnu(block: bytes, following: Callable[[], bytes], number: Callable[[bytes, str], int]) -> tuple[Segments, int]:
    """Four segments in the header, 21 in each block that follows it. Returns them and the real size."""
    segments = _pairs(block[386:482], number)
    real_size = number(block[483:495], "size")
    extended = block[482]
    while extended:
        block = following()
        segments += _pairs(block[:504], number)
        extended = block[504]
        if len(segments) > _MAX_SEGMENTS:
            raise InvalidArgument("the layer has a sparse file with too many segments")
    return segments, real_size


def in_header(value: bytes) -> Segments:
    """Version 0.1: offset, length, offset, length … in one value."""
    fields = value.split(b",") if value else []
    if len(fields) % 2:
        raise InvalidArgument("the layer has a sparse file with half a segment")
    numbers = [decimal(field) for field in fields]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def in_data(block: Callable[[], bytes]) -> Segments:
    """Version 1.0: a count and that many pairs, a line for each number, in blocks before the data."""
    buffer = b""
    lines: list[bytes] = []
    wanted = 1
    while len(lines) < wanted:
        buffer += block()
        *more, buffer = buffer.split(b"\n")
        lines += more
        if len(buffer) > 512:
            raise InvalidArgument("the layer has a sparse file with a map that is not in order")
        if lines:
            count = decimal(lines[0])
            if count > _MAX_SEGMENTS:
                raise InvalidArgument("the layer has a sparse file with too many segments")
            wanted = 1 + 2 * count
    numbers = [decimal(line) for line in lines[1:wanted]]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def checked(segments: Segments, *, size: int, real_size: int) -> Segments:
    """Segments in order, inside the file, of exactly the data that is there.

    Raises:
        InvalidArgument: they are not.
    """
    end = total = 0
    for offset, length in segments:
        if offset < end or length < 0:
            raise InvalidArgument("the layer has a sparse file with segments out of order")
        end = offset + length
        total += length
    if end > real_size or total != size or real_size >= 1 << 62:
        raise InvalidArgument("the layer has a sparse file with a map that doesn't fit its size")
    return segments


def _pairs(field: bytes, number: Callable[[bytes, str], int]) -> Segments:
    segments = []
    for at in range(0, len(field), 24):
        if field[at] == 0:
            break
        segments.append((number(field[at : at + 12], "segment"), number(field[at + 12 : at + 24], "segment")))
    return segments
