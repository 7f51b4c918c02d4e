"""Capabilities of the processes in containers. None is ever inheritable or ambient."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from carina.errors import InvalidArgument

CAPABILITIES: Final = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT "
        "KILL AUDIT_WRITE"
    ).split()
)
"""Those that containers have by default."""
_NAMES: Final = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
    "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()
"""In the order of their numbers (linux/capability.h)."""
_ALL: Final = "ALL"


def known_capabilities() -> list[str]:
    """All that the kernel has."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    return [f"CAP_{name}" for name in _NAMES[: last + 1]]


def capability_sets(names: Sequence[str]) -> dict[str, list[str]]:
    """As in a specification's `process`."""
    return {kind: list(names) for kind in ("bounding", "effective", "permitted")}


def changed(names: Sequence[str], add: Sequence[str], drop: Sequence[str]) -> list[str]:
    """A set of capabilities with some added, others taken away; taking away comes last.

    Raises:
        InvalidArgument: one that is not known.
    """
    for name in (*add, *drop):
        if name != _ALL and name.removeprefix("CAP_") not in _NAMES:
            raise InvalidArgument(f"capability {name[:64]!r} is not known: expected a name like CAP_NET_ADMIN, or ALL")
        if name != _ALL and not name.startswith("CAP_"):
            raise InvalidArgument(f"capability {name!r} must be written CAP_{name}")
    if _ALL in drop:
        return []
    kept = [*names, *(known_capabilities() if _ALL in add else add)]
    return [name for name in dict.fromkeys(kept) if name not in drop]
