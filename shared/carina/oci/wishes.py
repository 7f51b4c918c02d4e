"""Wishes that change a specification which has its defaults already: security, devices, limits, identities."""

import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any, Final

from carina.errors import CarinaError, InvalidArgument, NotFound
from carina.linux.errnos import translated
from carina.oci.capabilities import capability_sets, changed
from carina.oci.options import Options
from carina.oci.seccomp import default_profile

_NAMESPACES: Final = frozenset({"pid", "ipc", "uts", "mount", "network", "cgroup", "user", "time"})
_PROPAGATIONS: Final = frozenset(
    kind for name in ("shared", "slave", "private", "unbindable") for kind in (name, f"r{name}")
)
_HOOKS: Final = frozenset({"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"})
_MAX_DEVICES: Final = 4096


def apply(spec: dict[str, Any], options: Options) -> None:
    """Change `spec` as `options` have it.

    Raises:
        InvalidArgument: a value can't be.
        NotFound: a device that is not there.
    """
    _check(options)
    process, linux = spec["process"], spec["linux"]
    if options.add_capabilities or options.drop_capabilities:
        present = process["capabilities"]["bounding"]
        process["capabilities"] = capability_sets(changed(present, options.add_capabilities, options.drop_capabilities))
    if options.new_privileges:
        process["noNewPrivileges"] = False
    if options.apparmor:
        process["apparmorProfile"] = options.apparmor
    if options.selinux_process:
        process["selinuxLabel"] = options.selinux_process
    process["rlimits"] = _rlimits(process["rlimits"], options.rlimits)
    if options.hooks:
        spec["hooks"] = {kind: [dict(hook) for hook in hooks] for kind, hooks in options.hooks.items()}
    for key, value in (
        ("mountLabel", options.selinux_mount),
        ("rootfsPropagation", options.rootfs_propagation),
        ("sysctl", dict(options.sysctls)),
        ("uidMappings", _mappings(options.uid_mappings)),
        ("gidMappings", _mappings(options.gid_mappings)),
        ("intelRdt", {"closID": options.rdt_class} if options.rdt_class else None),
        ("seccomp", _seccomp(options, process)),
    ):
        if value:
            linux[key] = value
    _limit(linux["resources"], options)
    _add_devices(linux, options.devices)


def _check(options: Options) -> None:
    for kind, path in options.join.items():
        if kind not in _NAMESPACES:
            raise InvalidArgument(f"namespace kind {kind[:32]!r} is not one of {', '.join(sorted(_NAMESPACES))}")
        if not path.startswith("/"):
            raise InvalidArgument(f"{kind} namespace {path[:128]!r} is not an absolute path")
    if options.rootfs_propagation and options.rootfs_propagation not in _PROPAGATIONS:
        allowed = ", ".join(sorted(_PROPAGATIONS))
        raise InvalidArgument(
            f"root file system propagation {options.rootfs_propagation[:32]!r} is not one of {allowed}"
        )
    for kind in options.hooks:
        if kind not in _HOOKS:
            raise InvalidArgument(f"hook {kind[:32]!r} is not one of {', '.join(sorted(_HOOKS))}")
    for noun, number in (
        ("memory limit", options.memory_limit),
        ("CPU shares", options.cpu_shares),
        ("CPU quota", options.cpu_quota),
        ("CPU period", options.cpu_period),
        ("limit of processes", options.pids_limit),
    ):
        if number < 0:
            raise InvalidArgument(f"{noun} {number} is negative")


def _seccomp(options: Options, process: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if options.seccomp_profile is not None:
        return dict(options.seccomp_profile)
    return default_profile(process["capabilities"]["bounding"]) if options.seccomp else None


def _rlimits(present: Sequence[Mapping[str, Any]], wanted: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
    for name, (soft, hard) in wanted.items():
        if not name.startswith("RLIMIT_") or not 0 <= soft <= hard < 1 << 64:
            raise InvalidArgument(
                f"limit {name[:32]}={soft}:{hard} is not valid: expected RLIMIT_NAME, soft up to hard"
            )
    kept = [dict(limit) for limit in present if limit["type"] not in wanted]
    return kept + [{"type": name, "soft": soft, "hard": hard} for name, (soft, hard) in wanted.items()]


def _mappings(wanted: Sequence[tuple[int, int, int]]) -> list[dict[str, int]]:
    for mapping in wanted:
        inside, outside, size = mapping
        if min(mapping) < 0 or size < 1 or max(inside, outside) + size > 1 << 32:
            raise InvalidArgument(f"mapping {inside}:{outside}:{size} is not within 32 bits")
    return [{"containerID": inside, "hostID": outside, "size": size} for inside, outside, size in wanted]


def _limit(resources: dict[str, Any], options: Options) -> None:
    cpu = {"shares": options.cpu_shares, "quota": options.cpu_quota, "period": options.cpu_period}
    given = {key: value for key, value in cpu.items() if value}
    if given:
        resources["cpu"] = given
    if options.pids_limit:
        resources["pids"] = {"limit": options.pids_limit}


def _add_devices(linux: dict[str, Any], paths: Sequence[str]) -> None:
    found = [device for path in paths for device in devices(path)]
    if not found:
        return
    linux["devices"] = found
    linux["resources"]["devices"] += [
        {"allow": True, "type": device["type"], "major": device["major"], "minor": device["minor"], "access": "rwm"}
        for device in found
    ]


def devices(path: str) -> list[dict[str, Any]]:
    """A device of the host, or all below a directory, as in a specification's `linux.devices`.

    Raises:
        InvalidArgument: it is neither, or there are too many.
        NotFound: there is nothing of that name.
    """
    if not path.startswith("/"):
        raise InvalidArgument(f"device {path[:128]!r} is not an absolute path")
    try:
        if not os.path.isdir(path):
            return [_device(path)]
        below = [os.path.join(top, name) for top, _, names in os.walk(path) for name in names]
    except OSError as error:
        raise translated(error, f"device {path[:128]}") from error
    if len(below) > _MAX_DEVICES:
        raise InvalidArgument(f"directory {path[:128]} has more than {_MAX_DEVICES} entries")
    found = []
    for name in sorted(below):
        try:
            found.append(_device(name))
        except CarinaError:
            continue  # of another kind, or gone meanwhile
    return found


def _device(path: str) -> dict[str, Any]:
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise NotFound(f"device {path[:128]} does not exist") from error
    kind = {stat.S_IFBLK: "b", stat.S_IFCHR: "c"}.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        raise InvalidArgument(f"{path[:128]} is not a device")
    return {
        "path": path,
        "type": kind,
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
    }
