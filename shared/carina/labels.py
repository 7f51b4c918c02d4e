"""Labels: the names that containerd gives a meaning, and the limit on their size."""

from collections.abc import Mapping
from typing import Final

from carina.errors import InvalidArgument

MAX_SIZE: Final = 4096
"""Bytes of one key and its value together."""

GC_ROOT: Final = "containerd.io/gc.root"
GC_EXPIRE: Final = "containerd.io/gc.expire"
GC_FLAT: Final = "containerd.io/gc.flat"
GC_REF_CONTENT: Final = "containerd.io/gc.ref.content"
GC_REF_SNAPSHOT: Final = "containerd.io/gc.ref.snapshot"
GC_REF_IMAGE: Final = "containerd.io/gc.ref.image"
UNCOMPRESSED: Final = "containerd.io/uncompressed"
DISTRIBUTION_SOURCE: Final = "containerd.io/distribution.source"
SNAPSHOT_REF: Final = "containerd.io/snapshot.ref"
SNAPSHOT_PREFIX: Final = "containerd.io/snapshot/"
NAMESPACE_SHAREABLE: Final = "containerd.io/namespace.shareable"
DEFAULT_SNAPSHOTTER: Final = "containerd.io/defaults/snapshotter"
DEFAULT_RUNTIME: Final = "containerd.io/defaults/runtime"

Labels = Mapping[str, str]


def validate(labels: Labels) -> None:
    """Refuse what containerd refuses.

    Raises:
        InvalidArgument: a key with its value is longer than 4,096 bytes, or there is no key.
    """
    for key, value in labels.items():
        if not key:
            raise InvalidArgument(f"label with the value {value[:64]!r} has no key")
        size = len(key.encode()) + len(value.encode())
        if size > MAX_SIZE:
            raise InvalidArgument(f"label {key[:64]!r} is {size} bytes long with its value, more than {MAX_SIZE}")


def stated(labels: Labels) -> dict[str, str]:
    """Labels as they are kept: one without a value is none, as in containerd."""
    return {key: value for key, value in labels.items() if value != ""}


def changed(old: Labels, new: Labels, fields: list[str]) -> dict[str, str]:
    """Apply a field mask's `labels` and `labels.KEY` paths: `labels` replaces all, `labels.KEY` sets or removes one."""
    result = dict(old)
    for field in fields:
        if field == "labels":
            result = dict(new)
        elif field.startswith("labels."):
            key = field.removeprefix("labels.")
            if new.get(key, "") != "":
                result[key] = new[key]
            else:
                result.pop(key, None)
    return result
