"""Source text of an encoder and a decoder for each message class, compiled when the class is first used.

The generated functions do per field what betterproto2 finds out per message: names, tags and types are constants in
them. `encode(message)` returns bytes; `decode(data, at, end)` reads the message that fills data[at:end], and raises
`Malformed`, IndexError, UnicodeDecodeError or struct.error for what is none.
Fields are written in the order in which the class declares them, as betterproto2 does.
"""

import dataclasses
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

import betterproto2
from betterproto2 import FieldMetadata

from carina.api.google.protobuf import Timestamp
from carina.rpc import wire

_FIXED: Final = {
    "double": ("<d", wire.FIXED64),
    "fixed64": ("<Q", wire.FIXED64),
    "sfixed64": ("<q", wire.FIXED64),
    "float": ("<f", wire.FIXED32),
    "fixed32": ("<I", wire.FIXED32),
    "sfixed32": ("<i", wire.FIXED32),
}
_ZERO: Final = {"string": '""', "bytes": 'b""', "bool": "False", "float": "0.0", "double": "0.0"}
_LIMITS: Final = {
    "int32": (-(1 << 31), (1 << 31) - 1),
    "sint32": (-(1 << 31), (1 << 31) - 1),
    "enum": (-(1 << 31), (1 << 31) - 1),
    "uint32": (0, (1 << 32) - 1),
    "int64": (-(1 << 63), (1 << 63) - 1),
    "sint64": (-(1 << 63), (1 << 63) - 1),
    "uint64": (0, (1 << 64) - 1),
}


@dataclasses.dataclass(slots=True)
class Coder:
    """What is compiled for one class."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes, int, int], Any]


_coders: dict[type, Coder] = {}


def coder(kind: type[betterproto2.Message]) -> Coder:
    """The functions for a class, compiled now if it is used for the first time."""
    known = _coders.get(kind)
    if known is not None:
        return known
    fields = [_field(kind, name, meta) for name, meta in _meta(kind).meta_by_field_name.items()]
    scope: dict[str, Any] = {"wire": wire, "varint": wire.varint, "read_varint": wire.read_varint, "kind": kind}
    scope |= {"Malformed": wire.Malformed, "new": object.__new__, "SHORT": wire.SHORT}
    for field in fields:
        scope |= field.scope
    source = "\n".join([*_encoder(fields), *_decoder(fields)])
    exec(compile(source, f"<codec of {kind.__module__}.{kind.__name__}>", "exec"), scope)  # noqa: S102
    made = _coders[kind] = Coder(encode=scope["encode"], decode=scope["decode"])
    for field in fields:  # after the class itself is known: types may contain themselves
        if field.message is not None:
            inner = coder(field.message)
            scope[f"encode_{field.number}"], scope[f"decode_{field.number}"] = inner.encode, inner.decode
    return made


def _meta(kind: type[betterproto2.Message]) -> betterproto2.ProtoClassMetadata:
    meta: betterproto2.ProtoClassMetadata = kind._betterproto  # type: ignore[arg-type]
    return meta


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    name: str
    number: int
    kind: str
    repeated: bool
    presence: bool
    """None is distinct from the zero value."""
    group: tuple[int, ...]
    """The numbers of the other fields of its oneof."""
    message: type[betterproto2.Message] | None
    scope: dict[str, Any]
    key: "_Field | None" = None
    value: "_Field | None" = None

    def tag(self, kind: int | None = None) -> int:
        return self.number << 3 | (self.wire_kind if kind is None else kind)

    @property
    def local(self) -> str:
        """The decoder's variable: numbered, so that no field's name collides with the decoder's own."""
        return f"field_{self.number}"

    @property
    def wire_kind(self) -> int:
        if self.kind in _FIXED:
            return _FIXED[self.kind][1]
        return wire.DELIMITED if self.kind in ("string", "bytes", "message", "map") else wire.VARINT

    @property
    def packable(self) -> bool:
        return self.wire_kind != wire.DELIMITED

    @property
    def initial(self) -> str:
        if self.repeated:
            return "[]"
        if self.kind == "map":
            return "{}"
        if self.presence:
            return "None"
        return f"enum_{self.number}(0)" if self.kind == "enum" else _ZERO.get(self.kind, "0")


def _field(kind: type[betterproto2.Message], name: str, meta: FieldMetadata) -> _Field:
    classes = _meta(kind).cls_by_field
    others = _meta(kind).oneof_field_by_group.get(meta.group, set()) if meta.group else set()
    group = tuple(sorted(FieldMetadata.get(field).number for field in others if field.name != name))
    if meta.proto_type != "map":
        return _plain(name, meta, classes[name], group=group)
    assert meta.map_meta is not None
    key = _plain("key", meta.map_meta[0], object, number=meta.number)
    value = _plain("value", meta.map_meta[1], classes[f"{name}.value"], number=meta.number)
    return _Field(
        name=name,
        number=meta.number,
        kind="map",
        repeated=False,
        presence=False,
        group=(),
        message=value.message,
        scope=value.scope,
        key=dataclasses.replace(key, number=1),
        value=value,
    )


def _plain(
    name: str, meta: FieldMetadata, class_: Any, *, group: tuple[int, ...] = (), number: int | None = None
) -> _Field:
    number = meta.number if number is None else number
    kind = meta.proto_type
    scope: dict[str, Any] = {}
    message: type[betterproto2.Message] | None = None
    if kind == "message":
        wrapper = meta.unwrap() if meta.unwrap else None
        if wrapper is Timestamp:
            scope = {f"encode_{number}": wire.make_timestamp, f"decode_{number}": wire.read_timestamp}
        elif wrapper is not None:
            scope = _wrapped(wrapper, number)
        else:
            message = class_
            scope = {f"class_{number}": class_}
    elif kind == "enum":
        scope = {f"enum_{number}": class_, f"known_{number}": class_._value2member_map_}
    elif kind in _FIXED:
        packer = struct.Struct(_FIXED[kind][0])
        scope = {f"pack_{number}": packer.pack, f"unpack_{number}": packer.unpack_from}
    return _Field(
        name=name,
        number=number,
        kind=kind,
        repeated=bool(meta.repeated),
        presence=bool(meta.optional) or bool(meta.group) or kind == "message",
        group=group,
        message=message,
        scope=scope,
    )


def _wrapped(wrapper: Any, number: int) -> dict[str, Any]:
    """Fields that betterproto2 shows as a plain value (durations, wrapper types)."""
    return {
        f"encode_{number}": lambda value: coder(wrapper).encode(wrapper.from_wrapped(value)),
        f"decode_{number}": lambda data, at, end: coder(wrapper).decode(data, at, end).to_wrapped(),
    }


def _encoder(fields: list[_Field]) -> Iterator[str]:
    yield "def encode(message):"
    yield "    out = []"
    yield "    put = out.append"
    for field in fields:
        yield f"    value = message.{field.name}"
        if field.repeated:
            yield "    if value:"
            yield from _indent(8, _encode_packed(field) if field.packable else _encode_each(field))
        elif field.kind == "map":
            yield "    if value:"
            yield from _indent(8, _encode_map(field))
        elif field.presence:
            yield "    if value is not None:"
            yield from _indent(8, _encode_one(field))
        elif field.kind in ("float", "double"):
            yield "    if value or str(value) == '-0.0':"
            yield from _indent(8, _encode_one(field))
        else:
            yield "    if value:"
            yield from _indent(8, _encode_one(field))
    yield "    if message._unknown_fields:"
    yield "        put(message._unknown_fields)"
    yield "    return b''.join(out)"


def _indent(width: int, lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield " " * width + line


def _encode_one(field: _Field, value: str = "value") -> Iterator[str]:
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


def _check_limits(field: _Field, value: str) -> Iterator[str]:
    if field.kind in _LIMITS:
        low, high = _LIMITS[field.kind]
        yield f"if not {low} <= {value} <= {high}:"
        yield f"    raise OverflowError('field {field.name} does not fit into its type')"


def _to_bytes(field: _Field, value: str) -> str:
    if field.kind == "string":
        return f"{value}.encode()"
    return value if field.kind == "bytes" else f"encode_{field.number}({value})"


def _to_number(field: _Field, value: str) -> str:
    if field.kind in _FIXED:
        return f"pack_{field.number}({value})"
    if field.kind in ("sint32", "sint64"):
        return f"varint({value} << 1 if {value} >= 0 else ~({value} << 1))"
    return f"(b'\\x01' if {value} else b'\\x00')" if field.kind == "bool" else f"varint({value})"


def _encode_each(field: _Field) -> Iterator[str]:
    yield "for item in value:"
    yield from _indent(4, _encode_one(field, "item"))


def _encode_packed(field: _Field) -> Iterator[str]:
    yield "for item in value:"
    yield "    pass"
    yield from _indent(4, _check_limits(field, "item"))
    yield f"data = b''.join([{_to_number(field, 'item')} for item in value])"
    yield f"put({wire.varint(field.tag(wire.DELIMITED))!r} + varint(len(data)))"
    yield "put(data)"


def _encode_map(field: _Field) -> Iterator[str]:
    assert field.key is not None
    assert field.value is not None
    value = dataclasses.replace(field.value, number=2)
    tag = wire.varint(field.tag())
    yield "for key, item in value.items():"
    yield f"    first = {_entry_part(field.key, 'key', field.key.number)}"
    yield f"    second = {_entry_part(value, 'item', field.number)}"
    yield "    size = len(first) + len(second)"
    yield f"    put({tag!r} + (SHORT[size] if size < 1024 else varint(size)))"
    yield "    put(first)"
    yield "    put(second)"


def _entry_part(field: _Field, value: str, scope_number: int) -> str:
    """An expression for the key or the value of a map's entry, with its tag."""
    tag = wire.varint(field.tag())
    scoped = dataclasses.replace(field, number=scope_number)
    if field.wire_kind == wire.DELIMITED:
        return f"wire.delimited({tag!r}, {_to_bytes(scoped, value)})"
    return f"{tag!r} + {_to_number(scoped, value)}"


def _decoder(fields: list[_Field]) -> Iterator[str]:
    yield "def decode(data, at, end):"
    for field in fields:
        yield f"    {field.local} = {field.initial}"
    yield "    unknown = b''"
    yield "    while at < end:"
    yield "        start = at"
    yield "        tag = data[at]"
    yield "        at += 1"
    yield "        if tag > 127:"
    yield "            tag, at = read_varint(data, start, end)"
    word = "if"
    for field in fields:
        for line in _decode_field(field):
            yield "        " + (line.replace("if", word, 1) if line.startswith("if tag") else line)
            word = "elif"
    if fields:
        numbers = ", ".join(str(field.number) for field in fields)
        yield f"        {word} tag >> 3 in ({numbers},):"
        yield "            raise Malformed('a field has the wrong type')"
        yield "        else:"
    else:
        yield "        if True:"
    yield "            at = wire.skip(data, at, end, tag=tag)"
    yield "            unknown += data[start:at]"
    yield "    if at != end:"
    yield "        raise Malformed('a field is cut off')"
    yield "    message = new(kind)"
    items = ", ".join(f"{field.name!r}: {field.local}" for field in fields)
    yield f"    message.__dict__ = {{{items}{', ' if items else ''}'_unknown_fields': unknown}}"
    yield "    return message"


def _decode_field(field: _Field) -> Iterator[str]:
    if field.kind == "map":
        yield f"if tag == {field.tag()}:"
        yield from _indent(4, _decode_map(field))
        return
    yield f"if tag == {field.tag()}:"
    target = "item" if field.repeated else field.local
    if field.kind == "message":
        yield from _indent(4, _decode_message(field, target))
    else:
        yield from _indent(4, _decode_scalar(field, target, "end"))
    if field.repeated:
        yield f"    {field.local}.append(item)"
    for other in field.group:
        yield f"    field_{other} = None"
    if field.repeated and field.packable:
        yield f"if tag == {field.tag(wire.DELIMITED)}:"
        yield from _indent(4, _decode_length())
        yield "    while at < stop:"
        yield from _indent(8, _decode_scalar(field, "item", "stop"))
        yield f"        {field.local}.append(item)"
        yield "    if at != stop:"
        yield "        raise Malformed('a field is cut off')"


def _decode_length(end: str = "end", stop: str = "stop") -> Iterator[str]:
    """Leaves `at` at the first byte of a delimited value and `stop` behind its last."""
    yield "size = data[at]"
    yield "at += 1"
    yield "if size > 127:"
    yield f"    size, at = read_varint(data, at - 1, {end})"
    yield f"{stop} = at + size"
    yield f"if {stop} > {end}:"
    yield "    raise Malformed('a field is cut off')"


def _decode_scalar(field: _Field, target: str, end: str) -> Iterator[str]:
    if field.kind in ("string", "bytes"):
        yield from _decode_length(end)
        yield f"{target} = " + ("str(data[at:stop], 'utf-8')" if field.kind == "string" else "data[at:stop]")
        yield "at = stop"
        return
    if field.kind in _FIXED:
        yield f"{target}, = unpack_{field.number}(data, at)"
        yield f"at += {8 if field.wire_kind == wire.FIXED64 else 4}"
        return
    yield "number = data[at]"
    yield "at += 1"
    yield "if number > 127:"
    yield f"    number, at = read_varint(data, at - 1, {end})"
    yield f"{target} = {_from_number(field)}"


def _from_number(field: _Field) -> str:
    signed32 = "(number & 0xFFFFFFFF ^ 0x80000000) - 0x80000000"
    match field.kind:
        case "bool":
            return "number != 0"
        case "int32":
            return f"number if number < 0x80000000 else {signed32}"
        case "int64":
            return "number if number < 1 << 63 else number - (1 << 64)"
        case "uint32":
            return "number & 0xFFFFFFFF"
        case "sint32":
            return "(number & 0xFFFFFFFF) >> 1 ^ -(number & 1)"
        case "sint64":
            return "number >> 1 ^ -(number & 1)"
        case "enum":
            number = f"({signed32})"
            return f"known_{field.number}.get({number}) or enum_{field.number}({number})"
        case _:
            return "number"


def _decode_message(field: _Field, target: str) -> Iterator[str]:
    yield from _decode_length()
    value = f"decode_{field.number}(data, at, stop)"
    if field.repeated:
        yield f"{target} = {value}"
    else:
        # A message that is sent in several parts is the parts merged.
        yield f"if {target} is None:"
        yield f"    {target} = {value}"
        yield "else:"
        yield f"    merged = encode_{field.number}({target}) + data[at:stop]"
        yield f"    {target} = decode_{field.number}(merged, 0, len(merged))"
    yield "at = stop"


def _decode_map(field: _Field) -> Iterator[str]:
    assert field.key is not None
    assert field.value is not None
    value = field.value
    value_tag = 2 << 3 | value.wire_kind
    yield from _decode_length(stop="last")
    yield f"key = {field.key.initial}"
    yield f"item = {'None' if value.kind == 'message' else value.initial}"
    yield "while at < last:"
    yield "    tag = data[at]"
    yield "    at += 1"
    yield "    if tag > 127:"
    yield "        tag, at = read_varint(data, at - 1, last)"
    yield f"    if tag == {field.key.tag()}:"
    yield from _indent(8, _decode_scalar(field.key, "key", "last"))
    yield f"    elif tag == {value_tag}:"
    if value.kind == "message":
        yield from _indent(8, _decode_length("last"))
        yield f"        item = decode_{value.number}(data, at, stop)"
        yield "        at = stop"
    else:
        yield from _indent(8, _decode_scalar(value, "item", "last"))
    yield "    elif tag >> 3 in (1, 2):"
    yield "        raise Malformed('a field has the wrong type')"
    yield "    else:"
    yield "        at = wire.skip(data, at, last, tag=tag)"
    yield "if at != last:"
    yield "    raise Malformed('a field is cut off')"
    if value.kind == "message":
        yield "if item is None:"
        yield f"    item = decode_{value.number}(b'', 0, 0)"
    yield f"{field.local}[key] = item"
