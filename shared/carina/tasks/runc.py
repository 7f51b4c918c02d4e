"""What runc's shims are told beside the specification (containerd.runc.v1, runtimeoptions.v1)."""

from carina.api.containerd.runc.v1 import CheckpointOptions, Options
from carina.api.runtimeoptions.v1 import Options as ConfigOptions
from carina.rpc.codec import encode
from carina.typed import TypedValue

_OPTIONS = "containerd.runc.v1.Options"
_CHECKPOINT = "containerd.runc.v1.CheckpointOptions"
_CONFIG = "runtimeoptions.v1.Options"


def options(
    *, binary: str = "", root: str = "", systemd_cgroup: bool = False, no_pivot: bool = False
) -> TypedValue | None:
    """Options of a container's runtime; None where nothing is asked for.

    Args:
        binary: a program that is called as runc is.
        root: the directory of its states.
        no_pivot: move the root mount instead of pivot_root(2), for a root file system on the initial ramdisk.
    """
    if not (binary or root or systemd_cgroup or no_pivot):
        return None
    made = Options(binary_name=binary, root=root, systemd_cgroup=systemd_cgroup, no_pivot_root=no_pivot)
    return TypedValue(_OPTIONS, encode(made))


def config(path: str, type_url: str = "") -> TypedValue:
    """The configuration file of a runtime that has one."""
    return TypedValue(_CONFIG, encode(ConfigOptions(type_url=type_url, config_path=path)))


def checkpoint(*, exit: bool = False, image_path: str = "", work_path: str = "") -> TypedValue:
    """How a task is checkpointed. `exit` ends it."""
    return TypedValue(_CHECKPOINT, encode(CheckpointOptions(exit=exit, image_path=image_path, work_path=work_path)))
