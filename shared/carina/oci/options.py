"""What a caller wants of a container, over what its image says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from carina.oci.user import User


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
    add_capabilities: Sequence[str] = ()
    """Full names, as CAP_NET_ADMIN; `ALL` for all that the kernel has."""
    drop_capabilities: Sequence[str] = ()
    new_privileges: bool = False
    """Whether set-user-id programs have their effect."""
    devices: Sequence[str] = ()
    """Devices of the host, or directories of such, under the same names."""
    cdi_devices: Sequence[str] = ()
    """Devices by their CDI names, `vendor.com/class=name`."""
    cdi_directories: Sequence[str] = ("/etc/cdi", "/var/run/cdi")
    """Where CDI specifications are; later ones take precedence."""
    cpu_shares: int = 0
    cpu_quota: int = 0
    cpu_period: int = 0
    pids_limit: int = 0
    """Processes and threads; 0 for no limit."""
    rlimits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Soft and hard limit by name, as RLIMIT_NOFILE."""
    sysctls: Mapping[str, str] = field(default_factory=dict)
    join: Mapping[str, str] = field(default_factory=dict)
    """Paths of namespaces to join, by kind."""
    uid_mappings: Sequence[tuple[int, int, int]] = ()
    """In the container, on the host, how many; any makes a user namespace."""
    gid_mappings: Sequence[tuple[int, int, int]] = ()
    hooks: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """As in the runtime specification."""
    seccomp: bool = False
    """Whether the default profile applies."""
    seccomp_profile: Mapping[str, Any] | None = None
    """One in its place, as in the runtime specification."""
    apparmor: str = ""
    """A profile that the kernel has."""
    selinux_process: str = ""
    selinux_mount: str = ""
    cgroup: str | None = None
    """Its control group; None: named after namespace and container."""
    rootfs_propagation: str = ""
    rdt_class: str = ""
