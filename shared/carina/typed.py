"""Values whose type is named beside them and whose bytes are kept as they came, and what is made of such."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TypedValue:
    """A `google.protobuf.Any`."""

    type_url: str
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What runs a container or sandbox."""

    name: str
    """`io.containerd.runc.v2`, or the absolute path of a shim."""
    options: TypedValue | None = None
