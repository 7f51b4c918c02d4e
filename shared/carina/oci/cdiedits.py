"""Edits that CDI devices make to a runtime specification, which stays as it was where one of them can't be made."""

import copy
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any, Final

from carina.errors import InvalidArgument, NotFound
from carina.linux.errnos import translated

_KINDS: Final = {stat.S_IFBLK: "b", stat.S_IFCHR: "c", stat.S_IFIFO: "p"}


def apply(spec: dict[str, Any], wanted: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Make edits in order; each comes with words that say whose it is. They are as `cdischema` has them.

    Raises:
        InvalidArgument: a device node is not a device.
        NotFound: there is no such device on the host.
    """
    made = copy.deepcopy(spec)
    for who, edits in wanted:
        _environment(made, edits.get("env") or ())
        for node in edits.get("deviceNodes") or ():
            _add_device(made, node, who)
        for mount in edits.get("mounts") or ():
            _add_mount(made, mount)
        for hook in edits.get("hooks") or ():
            entry = {key: hook[key] for key in ("path", "args", "env", "timeout") if hook.get(key)}
            made.setdefault("hooks", {}).setdefault(hook["hookName"], []).append(entry)
        if edits.get("intelRdt"):
            made["linux"]["intelRdt"] = {key: value for key, value in edits["intelRdt"].items() if value is not None}
        _add_groups(made["process"].setdefault("user", {}), edits.get("additionalGids") or ())
    if any(edits.get("mounts") for _, edits in wanted):
        # A mount at a path comes before those below it; otherwise the order stays.
        made["mounts"].sort(key=lambda mount: os.path.normpath(mount["destination"]).rstrip("/").count("/"))
    spec.clear()
    spec.update(made)


def _environment(spec: dict[str, Any], wanted: Sequence[str]) -> None:
    if not wanted:
        return
    values = dict.fromkeys(entry.partition("=")[0] for entry in wanted)
    kept = [entry for entry in spec["process"].get("env") or () if entry.partition("=")[0] not in values]
    last = {entry.partition("=")[0]: entry for entry in wanted}
    spec["process"]["env"] = [*kept, *last.values()]


def _add_device(spec: dict[str, Any], node: Mapping[str, Any], who: str) -> None:
    linux = spec["linux"]
    device = _completed(node, who, spec["process"].get("user") or {})
    linux["devices"] = [one for one in linux.get("devices") or () if one["path"] != device["path"]] + [device]
    if device["type"] == "p":
        return
    rule = {
        "allow": True,
        "type": "c" if device["type"] == "u" else device["type"],
        "major": device["major"],
        "minor": device["minor"],
        "access": node.get("permissions") or "rwm",
    }
    resources = linux.setdefault("resources", {})
    resources["devices"] = [*(resources.get("devices") or ()), rule]


def _completed(node: Mapping[str, Any], who: str, user: Mapping[str, Any]) -> dict[str, Any]:
    """The device with what the file leaves to the host: type, numbers and mode."""
    device = {key: node[key] for key in ("path", "type", "major", "minor", "fileMode", "uid", "gid") if key in node}
    device = {key: value for key, value in device.items() if value is not None and value != ""}
    kind = device.get("type")
    if kind is None or (kind != "p" and not (device.get("major") or device.get("minor"))):
        device |= _on_host(node, who, kind, "fileMode" in device)
    elif kind != "p":
        device |= {"major": device.get("major", 0), "minor": device.get("minor", 0)}
    for key in ("uid", "gid"):
        # A process that is not root is to be able to open it.
        if key not in device and user.get(key):
            device[key] = user[key]
    return device


def _on_host(node: Mapping[str, Any], who: str, kind: str | None, has_mode: bool) -> dict[str, Any]:
    path = node.get("hostPath") or node["path"]
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise NotFound(f"{who}: device {path} does not exist") from error
    except OSError as error:
        raise translated(error, f"{who}: device {path}") from error
    found = _KINDS.get(stat.S_IFMT(status.st_mode))
    if found is None:
        raise InvalidArgument(f"{who}: {path} is not a device")
    if kind is not None and kind != found and not (kind == "u" and found == "c"):
        raise InvalidArgument(f"{who}: {path} is of type {found}, not {kind}")
    device: dict[str, Any] = {"type": kind or found}
    if found != "p":
        device |= {"major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev)}
    if not has_mode:
        device["fileMode"] = stat.S_IMODE(status.st_mode)
    return device


def _add_mount(spec: dict[str, Any], mount: Mapping[str, Any]) -> None:
    made: dict[str, Any] = {"destination": mount["containerPath"], "source": mount["hostPath"]}
    if mount.get("type"):
        made["type"] = mount["type"]
    if mount.get("options"):
        made["options"] = list(mount["options"])
    spec["mounts"] = [one for one in spec.get("mounts") or () if one["destination"] != made["destination"]] + [made]


def _add_groups(user: dict[str, Any], wanted: Sequence[int]) -> None:
    present = list(user.get("additionalGids") or ())
    added = [gid for gid in dict.fromkeys(wanted) if gid and gid not in present]
    if added:
        user["additionalGids"] = present + added
