"""Protobuf messages to bytes and back, by tables: a message is a dict, and a table names its fields by number.

What is absent reads as the empty value of its kind, None for a message. Fields that no table names are skipped.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from carina.errors import InvalidArgument

Schema = Mapping[int, tuple[str, Any]]
"""Number -> name and kind: a scalar's kind, a `Schema`, `[kind]` for a repeated field."""
Values = dict[str, Any]

STRING: Final = "string"
BYTES: Final = "bytes"
UINT: Final = "uint"
INT: Final = "int"
BOOL: Final = "bool"
MAP: Final = "map"
"""From string to string."""
_EMPTY: Final = {STRING: "", BYTES: b"", UINT: 0, INT: 0, BOOL: False}
_ENTRY: Final[Schema] = {1: ("key", STRING), 2: ("value", STRING)}
_WIDTHS: Final = {1: 8, 5: 4}


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _block(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _field(number: int, kind: Any, value: Any) -> bytes:
    if kind == STRING:
        return _block(number, value.encode(errors="replace"))
    if kind == BYTES:
        return _block(number, value)
    if isinstance(kind, Mapping):
        return _block(number, encode(kind, value))
    return _varint(number << 3) + _varint(int(value) & 0xFFFF_FFFF_FFFF_FFFF)


def encode(schema: Schema, values: Mapping[str, Any]) -> bytes:
    out = bytearray()
    for number, (name, kind) in schema.items():
        value = values.get(name)
        if value is None:
            continue
        if isinstance(kind, list):
            out += b"".join(_field(number, kind[0], item) for item in value)
        elif kind == MAP:
            out += b"".join(_field(number, _ENTRY, {"key": key, "value": text}) for key, text in value.items())
        elif isinstance(kind, Mapping) or value:
            out += _field(number, kind, value)
    return bytes(out)


def _empty(kind: Any) -> Any:
    if isinstance(kind, list):
        return []
    if kind == MAP:
        return {}
    return None if isinstance(kind, Mapping) else _EMPTY[kind]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 70:
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise InvalidArgument("the message is not valid protobuf: a number has no end")


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and raw values of a message.

    Raises:
        InvalidArgument: it is not one.
    """
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _read_varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = _read_varint(data, at)
        elif kind in _WIDTHS:
            length = _WIDTHS[kind]
        else:
            raise InvalidArgument(f"the message is not valid protobuf: wire type {kind}")
        if at + length > len(data):
            raise InvalidArgument("the message is not valid protobuf: a field goes beyond its end")
        yield tag >> 3, data[at : at + length]
        at += length


def _value(kind: Any, raw: int | bytes) -> Any:
    if isinstance(raw, int):
        if kind == INT:
            return raw - (1 << 64) if raw >> 63 else raw
        if kind in (UINT, BOOL):
            return bool(raw) if kind == BOOL else raw
    elif kind == STRING:
        return raw.decode(errors="replace")
    elif kind == BYTES:
        return raw
    elif isinstance(kind, Mapping):
        return decode(kind, raw)
    raise InvalidArgument(f"the message is not valid protobuf: a field of kind {kind} has another wire type")


def _unpacked(data: Any) -> list[int]:
    numbers, at = [], 0
    while at < len(data):
        number, at = _read_varint(data, at)
        numbers.append(number)
    return numbers


def decode(schema: Schema, data: bytes) -> Values:
    """Every field of the table, with its value or the empty one.

    Raises:
        InvalidArgument: it is not such a message.
    """
    values = {name: _empty(kind) for name, kind in schema.values()}
    for number, raw in fields(data):
        if number not in schema:
            continue
        name, kind = schema[number]
        if isinstance(kind, list):
            packed = isinstance(raw, bytes) and kind[0] in (UINT, INT)
            values[name] += _unpacked(raw) if packed else [_value(kind[0], raw)]
        elif kind == MAP:
            entry = _value(_ENTRY, raw)
            values[name][entry["key"]] = entry["value"]
        else:
            values[name] = _value(kind, raw)
    return values
