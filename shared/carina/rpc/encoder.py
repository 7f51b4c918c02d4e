"""Source text of an encoder: `encode(message)` returns bytes.

Fields are written in the order in which the class declares them, as betterproto2 does.
"""

import dataclasses
from collections.abc import Iterator

from carina.rpc import wire
from carina.rpc.fields import FIXED, LIMITS, Field, indent


def source(fields: list[Field]) -> Iterator[str]:
    yield "def encode(message):"
    yield "    out = []"
    yield "    put = out.append"
    for field in fields:
        yield f"    value = message.{field.name}"
        if field.repeated:
            yield "    if value:"
            yield from indent(8, _encode_packed(field) if field.packable else _encode_each(field))
        elif field.kind == "map":
            yield "    if value:"
            yield from indent(8, _encode_map(field))
        elif field.presence:
            yield "    if value is not None:"
            yield from indent(8, _encode_one(field))
        elif field.kind in ("float", "double"):
            yield "    if value or str(value) == '-0.0':"
            yield from indent(8, _encode_one(field))
        else:
            yield "    if value:"
            yield from indent(8, _encode_one(field))
    yield "    if message._unknown_fields:"
    yield "        put(message._unknown_fields)"
    yield "    return b''.join(out)"


def _encode_one(field: Field, value: str = "value") -> Iterator[str]:
    tag = wire.varint(field.tag())
    if field.wire_kind == wire.DELIMITED:
        yield f"data = {_to_bytes(field, value)}"
        yield "size = len(data)"
        yield f"put({tag!r} + (SHORT[size] if size < 1024 else varint(size)))"
        yield "put(data)"
    elif field.kind == "bool":
        yield f"put({tag + bytes([1])!r} if {value} else {tag + bytes([0])!r})"
    else:
        yield from _check_limits(field, value)
        yield f"put({tag!r} + {_to_number(field, value)})"


def _check_limits(field: Field, value: str) -> Iterator[str]:
    if field.kind in LIMITS:
        low, high = LIMITS[field.kind]
        yield f"if not {low} <= {value} <= {high}:"
        yield f"    raise OverflowError('field {field.name} does not fit into its type')"


def _to_bytes(field: Field, value: str) -> str:
    if field.kind == "string":
        return f"{value}.encode()"
    return value if field.kind == "bytes" else f"encode_{field.number}({value})"


def _to_number(field: Field, value: str) -> str:
    if field.kind in FIXED:
        return f"pack_{field.number}({value})"
    if field.kind in ("sint32", "sint64"):
        return f"varint({value} << 1 if {value} >= 0 else ~({value} << 1))"
    return f"(b'\\x01' if {value} else b'\\x00')" if field.kind == "bool" else f"varint({value})"


def _encode_each(field: Field) -> Iterator[str]:
    yield "for item in value:"
    yield from indent(4, _encode_one(field, "item"))


def _encode_packed(field: Field) -> Iterator[str]:
    yield "for item in value:"
    yield "    pass"
    yield from indent(4, _check_limits(field, "item"))
    yield f"data = b''.join([{_to_number(field, 'item')} for item in value])"
    yield f"put({wire.varint(field.tag(wire.DELIMITED))!r} + varint(len(data)))"
    yield "put(data)"


def _encode_map(field: Field) -> Iterator[str]:
    assert field.key is not None
    assert field.value is not None
    value = dataclasses.replace(field.value, number=2)
    tag = wire.varint(field.tag())
    yield "for key, item in value.items():"
    if field.key.kind == "string" and value.kind in ("string", "bytes"):
        yield from indent(4, _encode_texts(tag, value))
        return
    yield f"    first = {_entry_part(field.key, 'key', field.key.number)}"
    yield f"    second = {_entry_part(value, 'item', field.number)}"
    yield "    size = len(first) + len(second)"
    yield f"    put({tag!r} + (SHORT[size] if size < 1024 else varint(size)))"
    yield "    put(first)"
    yield "    put(second)"


def _encode_texts(tag: bytes, value: Field) -> Iterator[str]:
    """An entry of labels, which most maps are: key and value together are mostly short."""
    first, second = wire.varint(1 << 3 | wire.DELIMITED), wire.varint(value.tag())
    yield "first = key.encode()"
    yield f"second = {'item.encode()' if value.kind == 'string' else 'item'}"
    yield "one, two = len(first), len(second)"
    yield "if one < 128 and two < 128:"
    yield f"    put({tag!r} + SHORT[one + two + 4] + {first!r} + SHORT[one])"
    yield "    put(first)"
    yield f"    put({second!r} + SHORT[two])"
    yield "    put(second)"
    yield "else:"
    yield f"    first, second = wire.delimited({first!r}, first), wire.delimited({second!r}, second)"
    yield f"    put({tag!r} + varint(len(first) + len(second)))"
    yield "    put(first)"
    yield "    put(second)"


def _entry_part(field: Field, value: str, scope_number: int) -> str:
    """An expression for the key or the value of a map's entry, with its tag."""
    tag = wire.varint(field.tag())
    scoped = dataclasses.replace(field, number=scope_number)
    if field.wire_kind == wire.DELIMITED:
        return f"wire.delimited({tag!r}, {_to_bytes(scoped, value)})"
    return f"{tag!r} + {_to_number(scoped, value)}"
