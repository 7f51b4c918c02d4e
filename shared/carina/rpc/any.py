"""`google.protobuf.Any`: to and from the domain, and what is inside, for showing it to people."""

import json
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from functools import cache
from importlib import import_module
from typing import Any, Final, cast

import betterproto2

from carina.api.google.protobuf import Any as WireAny
from carina.errors import InvalidArgument
from carina.rpc.codec import decode
from carina.typed import TypedValue

PACKAGES: Final = (
    "containerd.events",
    "containerd.services.images.v1",
    "containerd.runc.v1",
    "containerd.types",
    "containerd.types.transfer",
    "io.containerd.cgroups.v1",
    "io.containerd.cgroups.v2",
    "runtimeoptions.v1",
)


def value_from_wire(wire: WireAny | None) -> TypedValue | None:
    return None if wire is None else TypedValue(wire.type_url, wire.value)


def value_to_wire(value: TypedValue | None) -> WireAny | None:
    return None if value is None else WireAny(type_url=value.type_url, value=value.value)


def values_from_wire(wires: Mapping[str, WireAny]) -> dict[str, TypedValue]:
    """Extensions by name."""
    return {name: TypedValue(wire.type_url, wire.value) for name, wire in wires.items()}


def values_to_wire(values: Mapping[str, TypedValue]) -> dict[str, WireAny]:
    return {name: WireAny(type_url=value.type_url, value=value.value) for name, value in values.items()}


def describe(value: TypedValue) -> Any:
    """Fields by name where the type is one of the API's, JSON where the payload is that, else type and length."""
    name = value.type_url.rpartition("/")[2]
    kind = _kind(name)
    if kind is not None:
        try:
            return _plain(decode(kind, value.value))
        except InvalidArgument:
            pass
    try:
        return json.loads(value.value)
    except ValueError:
        return {"type_url": value.type_url, "bytes": len(value.value)}


@cache
def _kind(name: str) -> type[betterproto2.Message] | None:
    package, _, message = name.rpartition(".")
    if package not in PACKAGES:
        return None
    kind = getattr(import_module(f"carina.api.{package}"), message, None)
    return kind if isinstance(kind, type) and issubclass(kind, betterproto2.Message) else None


def _plain(value: Any) -> Any:
    if isinstance(value, betterproto2.Message):
        found = {field.name: getattr(value, field.name) for field in fields(cast(Any, value))}
        return {name: _plain(field) for name, field in found.items() if not name.startswith("_") and field}
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return {"bytes": len(value)}
    return value
