"""A runtime specification for a Linux container from an image's config and the caller's wishes.

The defaults are those of containerd's client: the same capabilities, mounts, namespaces, masked and read-only paths.
Specification: OCI runtime-spec 1.1, config.md and config-linux.md.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from carina.errors import InvalidArgument
from carina.images.manifest import Config
from carina.oci.user import User

TYPE_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_TYPE_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_TYPE_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
DEFAULT_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CAPABILITIES: Final = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the caller wants of a container, over what its image says."""

    args: Sequence[str] = ()
    """Replaces the image's entrypoint and command."""
    env: Sequence[str] = ()
    """`NAME=VALUE` each; `NAME` alone removes it."""
    cwd: str = ""
    user: User | None = None
    terminal: bool = False
    hostname: str = ""
    read_only: bool = False
    host_network: bool = False
    privileged: bool = False
    memory_limit: int = 0
    """Bytes; 0 for none."""
    mounts: Sequence[Mapping[str, Any]] = ()
    """As in the runtime specification."""
    annotations: Mapping[str, str] = field(default_factory=dict)


def generate(container_id: str, namespace: str, image: Config, options: Options = Options()) -> dict[str, Any]:
    """The specification of a container.

    Raises:
        InvalidArgument: there is nothing to run, or a value can't be.
    """
    spec: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": _process(image, options),
        "root": {"path": "rootfs", "readonly": options.read_only},
        "mounts": [*copy.deepcopy(_MOUNTS), *(dict(mount) for mount in options.mounts)],
        "linux": {
            "cgroupsPath": f"/{namespace}/{container_id}",
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
    return spec


def process(spec: Mapping[str, Any], args: Sequence[str], options: Options = Options()) -> dict[str, Any]:
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
    capabilities = list(CAPABILITIES)
    return {
        "terminal": options.terminal,
        "user": _user(options.user or User()),
        "args": args,
        "env": environment(image.env, options),
        "cwd": cwd,
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
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
    return [{"type": kind} for kind in kinds]


def _resources(options: Options) -> dict[str, Any]:
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if options.memory_limit:
        resources["memory"] = {"limit": options.memory_limit}
    return resources


def _make_privileged(spec: dict[str, Any]) -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    names = [f"CAP_{name}" for name in _CAPABILITY_NAMES[: last + 1]]
    spec["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), names)
    spec["process"]["noNewPrivileges"] = False
    spec["linux"]["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
    for mount in spec["mounts"]:
        if mount["type"] == "sysfs":
            mount["options"] = [option for option in mount["options"] if option != "ro"]


_CAPABILITY_NAMES: Final = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
    "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()
"""In the order of their numbers (linux/capability.h)."""
