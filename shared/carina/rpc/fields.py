"""What the compiler needs to know of a message class's fields."""

import dataclasses
import struct
from collections.abc import Iterator
from typing import Any, Final

import betterproto2
from betterproto2 import FieldMetadata

from carina.api.google.protobuf import Timestamp
from carina.rpc import wire

FIXED: Final = {
    "double": ("<d", wire.FIXED64),
    "fixed64": ("<Q", wire.FIXED64),
    "sfixed64": ("<q", wire.FIXED64),
    "float": ("<f", wire.FIXED32),
    "fixed32": ("<I", wire.FIXED32),
    "sfixed32": ("<i", wire.FIXED32),
}
_ZERO: Final = {"string": '""', "bytes": 'b""', "bool": "False", "float": "0.0", "double": "0.0"}
LIMITS: Final = {
    "int32": (-(1 << 31), (1 << 31) - 1),
    "sint32": (-(1 << 31), (1 << 31) - 1),
    "enum": (-(1 << 31), (1 << 31) - 1),
    "uint32": (0, (1 << 32) - 1),
    "int64": (-(1 << 63), (1 << 63) - 1),
    "sint64": (-(1 << 63), (1 << 63) - 1),
    "uint64": (0, (1 << 64) - 1),
}


def _meta(kind: type[betterproto2.Message]) -> betterproto2.ProtoClassMetadata:
    meta: betterproto2.ProtoClassMetadata = kind._betterproto  # type: ignore[arg-type]
    return meta


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Field:
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
    key: "Field | None" = None
    value: "Field | None" = None

    def tag(self, kind: int | None = None) -> int:
        return self.number << 3 | (self.wire_kind if kind is None else kind)

    @property
    def local(self) -> str:
        """The decoder's variable: numbered, so that no field's name collides with the decoder's own."""
        return f"field_{self.number}"

    @property
    def wire_kind(self) -> int:
        if self.kind in FIXED:
            return FIXED[self.kind][1]
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


def _one(kind: type[betterproto2.Message], name: str, meta: FieldMetadata) -> Field:
    classes = _meta(kind).cls_by_field
    others = _meta(kind).oneof_field_by_group.get(meta.group, set()) if meta.group else set()
    group = tuple(sorted(FieldMetadata.get(field).number for field in others if field.name != name))
    if meta.proto_type != "map":
        return _plain(name, meta, classes[name], group=group)
    assert meta.map_meta is not None
    key = _plain("key", meta.map_meta[0], object, number=meta.number)
    value = _plain("value", meta.map_meta[1], classes[f"{name}.value"], number=meta.number)
    return Field(
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
) -> Field:
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
    elif kind in FIXED:
        packer = struct.Struct(FIXED[kind][0])
        scope = {f"pack_{number}": packer.pack, f"unpack_{number}": packer.unpack_from}
    return Field(
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
    """Other types that betterproto2 shows as a plain value (durations, wrappers): rare enough to be left to it."""
    return {
        f"encode_{number}": lambda value: bytes(wrapper.from_wrapped(value)),
        f"decode_{number}": lambda data, at, end: wrapper.parse(data[at:end]).to_wrapped(),
    }


def fields_of(kind: type[betterproto2.Message]) -> list[Field]:
    """The fields of a class, in the order of its declaration."""
    return [_one(kind, name, meta) for name, meta in _meta(kind).meta_by_field_name.items()]


def indent(width: int, lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield " " * width + line
