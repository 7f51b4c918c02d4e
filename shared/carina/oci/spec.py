"""A runtime specification for a Linux container from an image's config and the caller's wishes.

The defaults are those of containerd's client: the same capabilities, mounts, namespaces, masked and read-only paths.
Specification: OCI runtime-spec 1.1, config.md and config-linux.md.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from carina.errors import InvalidArgument
from carina.images.manifest import Config
from carina.oci.capabilities import CAPABILITIES, capability_sets, known_capabilities
from carina.oci.cdi import inject
from carina.oci.options import Options as Options
from carina.oci.user import User
from carina.oci.wishes import apply

TYPE_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_TYPE_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_TYPE_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
DEFAULT_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MASKED_PATHS: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


NO_WISHES: Final = Options()


def _mount(destination: str, type_: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": type_, "source": source, "options": list(options)}


_MOUNTS: Final = (
    _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
    _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
    _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    _mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
    _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
    _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
    _mount("/run", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
)


def generate(container_id: str, namespace: str, image: Config, options: Options = NO_WISHES) -> dict[str, Any]:
    """The specification of a container.

    Raises:
        InvalidArgument: there is nothing to run, or a value can't be.
        NotFound: a device that is not there.
    """
    spec: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": _process(image, options),
        "root": {"path": "rootfs", "readonly": options.read_only},
        "mounts": [*copy.deepcopy(_MOUNTS), *(dict(mount) for mount in options.mounts)],
        "linux": {
            "cgroupsPath": f"/{namespace}/{container_id}" if options.cgroup is None else options.cgroup,
            "namespaces": _namespaces(options),
            "resources": _resources(options),
        },
    }
    if options.hostname:
        spec["hostname"] = options.hostname
    if options.annotations:
        spec["annotations"] = dict(options.annotations)
    if options.host_network:
        spec["mounts"] += [
            _mount(path, "bind", path, "rbind", "ro")
            for path in ("/etc/hosts", "/etc/resolv.conf")
            if Path(path).exists()
        ]
    if options.privileged:
        _make_privileged(spec)
    else:
        spec["linux"] |= {"maskedPaths": list(MASKED_PATHS), "readonlyPaths": list(READONLY_PATHS)}
    apply(spec, options)
    if options.cdi_devices:
        inject(spec, options.cdi_devices, options.cdi_directories)
    return spec


def process(spec: Mapping[str, Any], args: Sequence[str], options: Options = NO_WISHES) -> dict[str, Any]:
    """The specification of a further process in a container made from `spec`."""
    made: dict[str, Any] = copy.deepcopy(dict(spec["process"]))
    made |= {"args": list(args), "terminal": options.terminal}
    if options.cwd:
        made["cwd"] = options.cwd
    if options.user:
        made["user"] = _user(options.user)
    made["env"] = environment(made.get("env", ()), options)
    return made


def environment(image: Sequence[str], options: Options) -> list[str]:
    """The image's environment under the caller's: later ones replace earlier ones of the same name."""
    values: dict[str, str] = {}
    terminal = ["TERM=xterm"] if options.terminal else []
    for entry in (DEFAULT_PATH, *image, *terminal, *options.env):
        name, equals, value = entry.partition("=")
        if equals:
            values[name] = value
        else:
            values.pop(name, None)
    return [f"{name}={value}" for name, value in values.items()]


def _process(image: Config, options: Options) -> dict[str, Any]:
    args = list(options.args) or [*image.entrypoint, *image.cmd]
    if not args:
        raise InvalidArgument("no command to run: the image names none, so the caller must")
    cwd = options.cwd or image.working_dir or "/"
    if not cwd.startswith("/"):
        raise InvalidArgument(f"working directory {cwd!r} is not an absolute path")
    return {
        "terminal": options.terminal,
        "user": _user(options.user or User()),
        "args": args,
        "env": environment(image.env, options),
        "cwd": cwd,
        "capabilities": capability_sets(CAPABILITIES),
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    }


def _user(user: User) -> dict[str, Any]:
    made: dict[str, Any] = {"uid": user.uid, "gid": user.gid}
    if user.additional_gids:
        made["additionalGids"] = list(user.additional_gids)
    return made


def _namespaces(options: Options) -> list[dict[str, str]]:
    kinds = ["pid", "ipc", "uts", "mount"]
    if not options.host_network:
        kinds.append("network")
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        kinds.append("cgroup")
    if options.uid_mappings or options.gid_mappings:
        kinds.append("user")
    kinds += [kind for kind in options.join if kind not in kinds]
    return [{"type": kind, **({"path": options.join[kind]} if kind in options.join else {})} for kind in kinds]


def _resources(options: Options) -> dict[str, Any]:
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if options.memory_limit:
        resources["memory"] = {"limit": options.memory_limit}
    return resources


def _make_privileged(spec: dict[str, Any]) -> None:
    spec["process"]["capabilities"] = capability_sets(known_capabilities())
    spec["process"]["noNewPrivileges"] = False
    spec["linux"]["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
    for mount in spec["mounts"]:
        if mount["type"] == "sysfs":
            mount["options"] = [option for option in mount["options"] if option != "ro"]
