"""Lists as they go out: rows of blobs and images written straight into the bytes of messages.

In a list of a whole store, making an object of every row and a message of every object costs more than all else.
Bytes are put together as text of Latin-1, whose characters are the bytes: formatting it is the fastest that Python has.
`carina.rpc.codec` writes the same bytes for the same values, which a test holds it to.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any, Final

from carina.rpc import wire
from carina.sqlite import to_time
from metadatad.columns import unpack

BLOCK: Final = 100
"""Blobs in one message."""
_ASCII: Final = tuple(map(chr, range(128)))
_MORE: Final = tuple(map(chr, range(128, 256)))
"""Bytes of a varint that is not over with them."""


def content(connection: sqlite3.Connection, namespace: str, after: str, limit: int) -> tuple[list[bytes], str]:
    """Messages (ListContentResponse) with the blobs behind a digest, at most so many, and the last one's digest.

    The digest is empty where these were the last.
    """
    rows = connection.execute(
        "SELECT digest, size, labels, created_at, updated_at FROM blobs "
        "WHERE namespace = ? AND digest > ? ORDER BY digest LIMIT ?",
        (namespace, after, limit),
    ).fetchall()
    infos = list(_infos(rows))
    messages = ["".join(infos[at : at + BLOCK]).encode("latin-1") for at in range(0, len(infos), BLOCK)]
    return messages, rows[-1][0] if len(rows) == limit else ""


def images(connection: sqlite3.Connection, namespace: str) -> bytes:
    """The message (ListImagesResponse) with all images."""
    rows = connection.execute(
        "SELECT name, labels, media_type, digest, size, annotations, created_at, updated_at FROM images "
        "WHERE namespace = ? ORDER BY name",
        (namespace,),
    )
    return "".join(_images(rows)).encode("latin-1")


def _infos(rows: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    """Fields of ListContentResponse: Info has digest 1, size 2, created_at 3, updated_at 4, labels 5."""
    for digest, size, labels, created, updated in rows:
        begun = _timestamp(created)
        changed = begun if updated == created else _timestamp(updated)
        text = (
            f"\x0a{_varint(len(digest))}{digest}{_number(2, size)}\x1a{begun}\x22{changed}"
            f"{'' if labels == '{}' else _map(5, labels)}"
        )
        yield f"\x0a{_varint(len(text))}{text}"


def _images(rows: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    """Fields of ListImagesResponse: Image has name 1, labels 2, target 3, created_at 7, updated_at 8."""
    for name, labels, media_type, digest, size, annotations, created, updated in rows:
        begun = _timestamp(created)
        changed = begun if updated == created else _timestamp(updated)
        target = (
            f"{_text(1, media_type)}\x12{_varint(len(digest))}{digest}{_number(3, size)}"
            f"{'' if annotations == '{}' else _map(5, annotations)}"
        )
        text = (
            f"{_text(1, name)}{'' if labels == '{}' else _map(2, labels)}"
            f"\x1a{_varint(len(target))}{target}\x3a{begun}\x42{changed}"
        )
        yield f"\x0a{_varint(len(text))}{text}"


def _map(number: int, stored: str) -> str:
    """A field that is a map, from its column."""
    tag, entries = _ASCII[number << 3 | wire.DELIMITED], []
    ascii = stored.isascii() and "\\" not in stored
    for key, value in unpack(stored).items():
        if not ascii:
            key, value = _bytes(key), _bytes(value)
        one, two = len(key), len(value)
        if one + two < 124:
            entries.append(f"{tag}{_ASCII[one + two + 4]}\x0a{_ASCII[one]}{key}\x12{_ASCII[two]}{value}")
        else:
            entry = f"\x0a{_varint(one)}{key}\x12{_varint(two)}{value}"
            entries.append(f"{tag}{_varint(len(entry))}{entry}")
    return "".join(entries)


def _timestamp(stored: int) -> str:
    """The length and the bytes of a Timestamp: seconds 1, nanoseconds 2."""
    seconds, micros = divmod(stored, 1_000_000)
    if not (1 << 28 <= seconds < 1 << 35 and micros >= 268_436):
        data = wire.make_timestamp(to_time(stored)).decode("latin-1")
        return _varint(len(data)) + data
    nanos = micros * 1000  # both are varints of five bytes
    return (
        f"\x0c\x08{_MORE[seconds & 127]}{_MORE[seconds >> 7 & 127]}{_MORE[seconds >> 14 & 127]}"
        f"{_MORE[seconds >> 21 & 127]}{_ASCII[seconds >> 28]}"
        f"\x10{_MORE[nanos & 127]}{_MORE[nanos >> 7 & 127]}{_MORE[nanos >> 14 & 127]}"
        f"{_MORE[nanos >> 21 & 127]}{_ASCII[nanos >> 28]}"
    )


def _text(number: int, value: str) -> str:
    if not value:
        return ""
    text = value if value.isascii() else _bytes(value)
    return f"{_ASCII[number << 3 | wire.DELIMITED]}{_varint(len(text))}{text}"


def _bytes(value: str) -> str:
    return value.encode().decode("latin-1")


def _number(number: int, value: int) -> str:
    return f"{_ASCII[number << 3]}{_varint(value)}" if value else ""


def _varint(value: int) -> str:
    if 0 <= value < 128:
        return _ASCII[value]
    if 0 <= value < 16384:
        return _MORE[value & 127] + _ASCII[value >> 7]
    return wire.varint(value).decode("latin-1")
