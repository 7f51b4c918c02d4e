"""How records are stored: maps as JSON text, typed values as two columns, times as `carina.sqlite` has them."""

import base64
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from carina.errors import InvalidArgument
from carina.sqlite import from_time
from carina.typed import TypedValue

MAX_NAME: Final = 4096
"""Bytes of a name, key or ref."""

_MAP: Final = msgspec.json.Decoder(dict[str, str])
_VALUES: Final = msgspec.json.Decoder(dict[str, tuple[str, str]])


def pack(mapping: Mapping[str, str]) -> str:
    """A map as stored. An entry with an empty value is not stored, as containerd does not."""
    return msgspec.json.encode({key: value for key, value in mapping.items() if value != ""}).decode()


def unpack(stored: str) -> dict[str, str]:
    return {} if stored == "{}" else _MAP.decode(stored)


def pack_values(values: Mapping[str, TypedValue]) -> str:
    return msgspec.json.encode(
        {name: (value.type_url, base64.b64encode(value.value).decode()) for name, value in values.items()}
    ).decode()


def unpack_values(stored: str) -> dict[str, TypedValue]:
    if stored == "{}":
        return {}
    return {name: TypedValue(url, base64.b64decode(text)) for name, (url, text) in _VALUES.decode(stored).items()}


def typed(url: str | None, value: bytes | None) -> TypedValue | None:
    return None if url is None else TypedValue(url, value or b"")


def split(value: TypedValue | None) -> tuple[str | None, bytes | None]:
    """A typed value as its two columns."""
    return (None, None) if value is None else (value.type_url, value.value)


def moment(given: datetime | None, default: int) -> int:
    return default if given is None else from_time(given)


def validate_name(text: str, noun: str) -> None:
    """Refuse a name that can't be stored or shown.

    Raises:
        InvalidArgument: empty, too long, or with a zero byte.
    """
    if not text:
        raise InvalidArgument(f"{noun} must not be empty")
    if len(text.encode()) > MAX_NAME:
        raise InvalidArgument(f"{noun} {text[:64]!r}… is longer than {MAX_NAME} bytes")
    if "\0" in text:
        raise InvalidArgument(f"{noun} {text!r} holds a zero byte")


def select(
    connection: sqlite3.Connection, *, columns: str, table: str, key: str, namespace: str, keys: Sequence[str] | None
) -> Iterator[tuple[Any, ...]]:
    """Rows of a namespace in the order of their keys: those with the given keys, all with None."""
    query = f"SELECT {columns} FROM {table} WHERE namespace = ?"  # noqa: S608 - names of ours
    if keys is None:
        yield from connection.execute(f"{query} ORDER BY {key}", (namespace,))
    else:
        for wanted in keys:
            yield from connection.execute(f"{query} AND {key} = ?", (namespace, wanted))


def validate_extensions(extensions: Mapping[str, TypedValue], owner: str) -> None:
    """Refuse an extension without a name. Raises InvalidArgument."""
    if "" in extensions:
        raise InvalidArgument(f"an extension of {owner} has no name")
