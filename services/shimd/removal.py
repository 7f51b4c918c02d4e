"""`delete`: what containerd calls when a shim is dead, or has not come up: remove what there is of a container."""

import os
import time

from shimd.config import DEFAULT_ROOT, Config
from shimd.messages import DELETED, timestamp
from shimd.state import read
from shimd.wire import encode

_KILLED = 137


def remove(config: Config) -> bytes:
    """End the container's processes and remove its mounts and control groups; the answer for containerd.

    Raises:
        OSError: runc can't be executed.
    """
    record = read(config.bundle) or {}
    options = record.get("options") or {}
    root = os.path.join(options.get("root") or DEFAULT_ROOT, config.namespace)
    processes = record.get("processes") or [{}]
    if os.path.isdir(os.path.join(root, config.id)):
        command = [options.get("binary_name") or "runc", "--root", root]
        command += ["--systemd-cgroup"] if options.get("systemd_cgroup") else []
        null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
        pid = os.posix_spawnp(command[0], [*command, "delete", "--force", config.id], os.environ, file_actions=null)
        os.waitpid(pid, 0)
    _unmount(os.path.join(config.bundle, "rootfs"))
    first = processes[0]
    ended = first.get("exited_at") or 0
    values = {
        "pid": first.get("pid") or 0,
        "exit_status": first.get("exit_status") if ended else _KILLED,
        "exited_at": timestamp(ended or time.time_ns()),
    }
    return encode(DELETED, values)


def _unmount(rootfs: str) -> None:
    with open("/proc/self/mountinfo", "rb") as file:
        if os.fsencode(os.path.realpath(rootfs)) not in file.read():
            return
    from carina.linux.mount import unmount_beneath  # here, since it is mostly not needed, and takes long

    unmount_beneath(rootfs)
