"""What a CDI specification may say: each field's form, and the version that it came with.

Source: SPEC.md of the container device interface, `schema/`, and the rules of its Go package on names and versions.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from carina.errors import InvalidArgument

VERSIONS: Final = (
    *((0, minor, 0) for minor in range(1, 4)),
    (0, 3, 1),
    *((0, minor, 0) for minor in range(4, 9)),
    (1, 0, 0),
)
HOOKS: Final = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_VENDOR: Final = re.compile(r"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?")
_CLASS: Final = re.compile(r"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?")
_DEVICE: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_MAX_NAME: Final = 256

Check = Callable[[Any, str], None]


def validate_name(name: str) -> None:
    """Refuse what is not `vendor/class=device`. Raises InvalidArgument."""
    kind, equals, device = name.partition("=")
    vendor, slash, class_ = kind.partition("/")
    fits = (
        len(name) <= _MAX_NAME
        and equals
        and slash
        and _VENDOR.fullmatch(vendor)
        and _CLASS.fullmatch(class_)
        and _DEVICE.fullmatch(device)
    )
    if not fits:
        raise InvalidArgument(f"CDI device {name[:_MAX_NAME]!r} is not valid: expected vendor.com/class=name")


def validate(table: Any, who: str) -> None:
    """Refuse a specification that is none. `who` begins the sentence.

    Raises:
        InvalidArgument: a field is missing, unknown, of another type, or newer than the version that is stated.
    """
    fields: dict[str, Check] = {
        "cdiVersion": _text,
        "kind": _text,
        "annotations": _annotations,
        "devices": _list(_device),
        "containerEdits": _edits,
    }
    _object(table, who, fields, required=("cdiVersion", "kind", "devices"))
    version = _version(table["cdiVersion"], who)
    vendor, slash, class_ = table["kind"].partition("/")
    if not slash or not _VENDOR.fullmatch(vendor) or not _CLASS.fullmatch(class_):
        raise InvalidArgument(f"{who}: kind {table['kind'][:_MAX_NAME]!r} is not valid: expected vendor.com/class")
    names = [device["name"] for device in table["devices"]]
    if not names:
        raise InvalidArgument(f"{who} has no devices")
    for name in names:
        if names.count(name) > 1:
            raise InvalidArgument(f"{who} has device {name!r} twice")
    least = _least(table, class_)
    if version < least:
        stated, needed = ".".join(map(str, version)), ".".join(map(str, least))
        raise InvalidArgument(f"{who} states version {stated}, and has what came with {needed}")


def _version(text: str, who: str) -> tuple[int, ...]:
    parts = text.removeprefix("v").split(".")
    version = tuple(int(part) for part in parts if part.isascii() and part.isdigit() and len(part) < 5)
    if len(version) != len(parts) or version not in VERSIONS:
        raise InvalidArgument(f"{who}: version {text[:32]!r} is not known: expected 0.1.0 to 1.0.0")
    return version


def _least(table: Mapping[str, Any], class_: str) -> tuple[int, ...]:
    """The version with which the newest thing in it came."""
    every = [table.get("containerEdits") or {}, *(device.get("containerEdits") or {} for device in table["devices"])]
    if any(edits.get("additionalGids") or edits.get("intelRdt") for edits in every):
        return 0, 7, 0
    if "." in class_ or table.get("annotations") or any(device.get("annotations") for device in table["devices"]):
        return 0, 6, 0
    nodes = [node for edits in every for node in edits.get("deviceNodes") or ()]
    if any(node.get("hostPath") for node in nodes) or any(device["name"][0].isdigit() for device in table["devices"]):
        return 0, 5, 0
    if any(mount.get("type") for edits in every for mount in edits.get("mounts") or ()):
        return 0, 4, 0
    return 0, 1, 0


def _object(value: Any, who: str, fields: Mapping[str, Check], required: tuple[str, ...] = ()) -> None:
    if not isinstance(value, dict):
        raise InvalidArgument(f"{who} is not an object")
    for name, found in value.items():
        if name not in fields:
            raise InvalidArgument(f"{who} has an unknown field {str(name)[:64]!r}")
        if found is not None:
            fields[name](found, f"{who}: {name}")
    for name in required:
        if value.get(name) in (None, ""):
            raise InvalidArgument(f"{who} has no {name}")


def _text(value: Any, who: str) -> None:
    if not isinstance(value, str) or "\0" in value:
        raise InvalidArgument(f"{who} is not a text")


def _number(least: int, most: int) -> Check:
    def check(value: Any, who: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InvalidArgument(f"{who} is not a number from {least} to {most}")

    return check


def _list(check: Check) -> Check:
    def each(value: Any, who: str) -> None:
        if not isinstance(value, list):
            raise InvalidArgument(f"{who} is not a list")
        for position, entry in enumerate(value):
            check(entry, f"{who}[{position}]")

    return each


def _flag(value: Any, who: str) -> None:
    if not isinstance(value, bool):
        raise InvalidArgument(f"{who} is neither true nor false")


def _annotations(value: Any, who: str) -> None:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InvalidArgument(f"{who} is not an object")
    for key, text in value.items():
        _text(text, f"{who}.{key[:64]}")


def _device(value: Any, who: str) -> None:
    _object(value, who, {"name": _device_name, "annotations": _annotations, "containerEdits": _edits}, ("name",))
    if not any((value.get("containerEdits") or {}).values()):
        raise InvalidArgument(f"{who}: device {value['name']!r} has no edits")


def _device_name(value: Any, who: str) -> None:
    _text(value, who)
    if not _DEVICE.fullmatch(value):
        raise InvalidArgument(f"{who} {value[:_MAX_NAME]!r} is not a device's name")


def _edits(value: Any, who: str) -> None:
    fields: dict[str, Check] = {
        "env": _list(_variable),
        "deviceNodes": _list(_node),
        "hooks": _list(_hook),
        "mounts": _list(_mount),
        "intelRdt": _rdt,
        "additionalGids": _list(_number(0, 2**32 - 1)),
    }
    _object(value, who, fields)


def _variable(value: Any, who: str) -> None:
    _text(value, who)
    if not value.partition("=")[0] or "=" not in value:
        raise InvalidArgument(f"{who} {value[:64]!r} is not NAME=VALUE")


def _absolute(value: Any, who: str) -> None:
    _text(value, who)
    if not value.startswith("/"):
        raise InvalidArgument(f"{who} {value[:128]!r} is not an absolute path")


def _one_of(*allowed: str) -> Check:
    def check(value: Any, who: str) -> None:
        if value not in allowed:
            raise InvalidArgument(f"{who} {str(value)[:32]!r} is not one of {', '.join(filter(None, allowed))}")

    return check


def _permissions(value: Any, who: str) -> None:
    _text(value, who)
    if not set(value) <= set("rwm"):
        raise InvalidArgument(f"{who} {value[:32]!r} has others than r, w and m")


def _node(value: Any, who: str) -> None:
    fields: dict[str, Check] = {
        "path": _absolute,
        "hostPath": _absolute,
        "type": _one_of("", "b", "c", "u", "p"),
        "major": _number(0, 2**32 - 1),
        "minor": _number(0, 2**32 - 1),
        "fileMode": _number(0, 0o7777),
        "permissions": _permissions,
        "uid": _number(0, 2**32 - 1),
        "gid": _number(0, 2**32 - 1),
    }
    _object(value, who, fields, ("path",))


def _mount(value: Any, who: str) -> None:
    fields: dict[str, Check] = {"hostPath": _text, "containerPath": _absolute, "options": _list(_text), "type": _text}
    _object(value, who, fields, ("hostPath", "containerPath"))


def _hook(value: Any, who: str) -> None:
    fields: dict[str, Check] = {
        "hookName": _one_of(*HOOKS),
        "path": _absolute,
        "args": _list(_text),
        "env": _list(_variable),
        "timeout": _number(1, 2**31 - 1),
    }
    _object(value, who, fields, ("hookName", "path"))


def _class_of_service(value: Any, who: str) -> None:
    _text(value, who)
    if len(value) >= 4096 or value in (".", "..") or set(value) & set("/\n"):
        raise InvalidArgument(f"{who} {value[:64]!r} is not a class of service")


def _rdt(value: Any, who: str) -> None:
    fields: dict[str, Check] = {
        "closID": _class_of_service,
        "l3CacheSchema": _text,
        "memBwSchema": _text,
        "enableCMT": _flag,
        "enableMBM": _flag,
    }
    _object(value, who, fields)
