"""Id-mapped mounts: one tree, shown with other owners (mount_setattr(2), Linux 5.12; overlays of them, Linux 5.19).

A mapping is text as containerd has it: `inside:outside:count`, several with commas between.
Everything here blocks: call it in a thread.
"""

import contextlib
import ctypes
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from carina.errors import InvalidArgument
from carina.linux.libc import call, syscall
from carina.linux.mount_options import Options

_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_MOUNT_SETATTR: Final = 442
_CLONE: Final = 1
_CLOEXEC: Final = os.O_CLOEXEC
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_MOVE_EMPTY_PATH: Final = 4
_ATTR_IDMAP: Final = 0x00100000
_MNT_DETACH: Final = 2
_LARGEST: Final = 2**32 - 1
_RANGES: Final = 340
"""Linux's limit for the lines of a map."""


class _Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "namespace")]


def parse(mapping: str) -> tuple[tuple[int, int, int], ...]:
    """The ranges of a mapping: first id inside, first id outside, count.

    Raises:
        InvalidArgument: it is none.
    """
    ranges = []
    for part in mapping.split(","):
        numbers = part.split(":")
        if len(numbers) != 3 or not all(n.isascii() and n.isdecimal() and len(n) <= 10 for n in numbers):
            raise InvalidArgument(f"id mapping {mapping[:80]!r} is not valid: expected inside:outside:count")
        inside, outside, count = map(int, numbers)
        if not count or max(inside, outside) + count > _LARGEST:
            raise InvalidArgument(f"id mapping {mapping[:80]!r} is not valid: {part} is no range of ids")
        ranges.append((inside, outside, count))
    if len(ranges) > _RANGES:
        raise InvalidArgument(f"an id mapping has {len(ranges)} ranges: {_RANGES} are allowed")
    return tuple(ranges)


@contextlib.contextmanager
def user_namespace(uid_map: str, gid_map: str) -> Iterator[int]:
    """A descriptor of a user namespace with these mappings, which lives as long as something uses it.

    Raises:
        InvalidArgument: a mapping is none.
        OSError: the kernel refused.
    """
    maps = {"uid_map": parse(uid_map), "gid_map": parse(gid_map)}
    # A namespace is made by a process that enters it; `cat` answers when it has.
    holder = subprocess.Popen(
        ["unshare", "--user", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            holder.stdin.write(b".")
        if holder.stdout.read(1) != b".":
            raise PermissionError(1, "a user namespace can't be made")
        process = Path(f"/proc/{holder.pid}")
        for name, ranges in maps.items():
            (process / name).write_text("".join(f"{inside} {outside} {count}\n" for inside, outside, count in ranges))
        descriptor = os.open(process / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def bind(source: str, target: str, *, namespace: int, recursive: bool = False) -> None:
    """Mount the tree `source` on `target`, with its owners mapped as in the user namespace.

    Raises:
        OSError: the kernel or the file system can't.
    """
    below = _AT_RECURSIVE if recursive else 0
    tree = syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _CLONE | _CLOEXEC | below)
    try:
        attributes = _Attributes(set=_ATTR_IDMAP, namespace=namespace)
        size = ctypes.sizeof(attributes)
        syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH | below, ctypes.byref(attributes), size)
        syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_EMPTY_PATH)
    finally:
        os.close(tree)


@contextlib.contextmanager
def mapped_layers(options: Options, layers: Sequence[str], *, namespace: int) -> Iterator[Options]:
    """The options of an overlay whose lower `layers` are mapped, for as long as it takes to mount it.

    An overlay keeps its layers when their mounts are gone from the tree. Its upper directory is never mapped:
    what is written there belongs to the mapped ids.
    """
    directory = tempfile.mkdtemp(prefix="carina-idmap-")
    done: list[str] = []
    try:
        for number, layer in enumerate(layers):
            place = os.path.join(directory, str(number))
            os.mkdir(place)
            bind(layer, place, namespace=namespace)
            done.append(place)
        rest = tuple(option for option in options.data if not option.startswith("lowerdir="))
        yield replace(options, data=(*rest, f"lowerdir={':'.join(done)}"))
    finally:
        for place in reversed(done):
            call("umount2", os.fsencode(place), _MNT_DETACH)
        # Not recursively below what may be mounted still.
        for name in os.listdir(directory):
            os.rmdir(os.path.join(directory, name))
        os.rmdir(directory)
