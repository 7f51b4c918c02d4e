"""`delete`: what containerd calls when a shim is dead, or has not come up: remove what there is of a container."""

import os
import time

from carina.linux.mount import unmount_all, unmount_beneath
from shimd.config import Config
from shimd.messages import DELETED, timestamp
from shimd.runc import DEFAULT_ROOT
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
    command = [options.get("binary_name") or "runc", "--root", root]
    command += ["--systemd-cgroup"] if options.get("systemd_cgroup") else []
    null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    pid = os.posix_spawnp(command[0], [*command, "delete", "--force", config.id], os.environ, file_actions=null)
    os.waitpid(pid, 0)
    rootfs = os.path.join(config.bundle, "rootfs")
    if os.path.isdir(rootfs):
        unmount_beneath(rootfs)
        unmount_all(rootfs, detach=True)
    first = processes[0]
    ended = first.get("exited_at") or 0
    values = {
        "pid": first.get("pid") or 0,
        "exit_status": first.get("exit_status") if ended else _KILLED,
        "exited_at": timestamp(ended or time.time_ns()),
    }
    return encode(DELETED, values)
