"""Runtimes: from a runtime's name to the shim that serves it, and the options that a shim is given."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from carina import shim
from carina.errors import InvalidArgument, NotFound

RUNC_OPTIONS: Final = "containerd.runc.v1.Options"
RUNC_CHECKPOINT_OPTIONS: Final = "containerd.runc.v1.CheckpointOptions"
_PREFIX: Final = "containerd-shim-"
_RUNC: Final = "containerd-shim-runc-v2"


def binary_name(runtime: str) -> str:
    """`io.containerd.runc.v2` -> `containerd-shim-runc-v2`.

    Raises:
        InvalidArgument: it is neither such a name nor an absolute path.
    """
    parts = runtime.split(".")
    if len(parts) < 2 or "/" in runtime or "\0" in runtime or not all(parts):
        raise InvalidArgument(
            f"runtime {runtime!r} is not valid: expected a name like io.containerd.runc.v2 or the path of a shim"
        )
    return f"{_PREFIX}{parts[-2]}-{parts[-1]}"


def find_shim(runtime: str, directories: Sequence[str] = ()) -> Path:
    """The shim of a runtime: a path as it is, a name on PATH, in `directories` or beside our own program.

    Where containerd's shim for runc is not installed, ours serves in its place.

    Raises:
        InvalidArgument: the name is not one.
        NotFound: the shim is not there, or not executable.
    """
    if runtime.startswith("/"):
        if "\0" in runtime or not (os.path.isfile(runtime) and os.access(runtime, os.X_OK)):
            raise NotFound(f"runtime {runtime!r}: there is no such executable file")
        return Path(runtime)
    name = binary_name(runtime)
    beside = (os.path.dirname(sys.executable), os.path.dirname(os.path.abspath(sys.argv[0])))
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *directories, *beside])
    found = shutil.which(name, path=path)
    if found is None and name == _RUNC:
        found = shutil.which(shim.BINARY, path=path)
    if found is None or not os.path.isabs(found):
        raise NotFound(f"runtime {runtime!r}: binary {name} is not installed")
    return Path(found)


def is_runc(binary: Path) -> bool:
    """Whether it is one of containerd's shims for runc."""
    return binary.name.startswith(f"{_PREFIX}runc-")


def is_own(binary: Path) -> bool:
    """Whether it is our shim: it takes runc's options too."""
    return binary.name == shim.BINARY
