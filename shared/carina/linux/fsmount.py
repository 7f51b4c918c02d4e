"""Overlays whose options don't fit the page that mount(2) takes: fsopen(2) and its kin, or relative layer paths."""

import errno
import os
import re
import threading
from collections.abc import Iterator
from typing import Final

from carina.linux import mount_options
from carina.linux.libc import call, syscall
from carina.linux.mount_options import Options

_MOVE_MOUNT: Final = 429
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_CLOEXEC: Final = 1
_SET_FLAG: Final = 0
_SET_STRING: Final = 1
_SET_FD: Final = 5
_CREATE: Final = 6
_AT_FDCWD: Final = -100
_EMPTY_PATH: Final = 4
_LONGEST_VALUE: Final = 255
"""fsconfig(2) takes no longer text; overlayfs takes a descriptor in its place since Linux 6.13."""
_CLONE_FS: Final = 0x00000200
_FALLBACK: Final = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENAMETOOLONG}
_DIRECTORIES: Final = ("upperdir", "workdir")
_ATTRIBUTES: Final = {
    mount_options.RDONLY: 1,
    mount_options.NOSUID: 2,
    mount_options.NODEV: 4,
    mount_options.NOEXEC: 8,
    mount_options.NOATIME: 0x10,
    mount_options.NODIRATIME: 0x80,
    1 << 24: 0x20,
}


def needed(options: Options, *, page: int) -> bool:
    """Whether the options are too long for mount(2), or hold a comma that it would split at."""
    return len(os.fsencode(options.text)) >= page or any("," in option for option in options.data)


def overlay(source: str, options: Options, target: str) -> None:
    """Mount an overlay, layer by layer where the kernel can (`lowerdir+`, Linux 6.8), else by relative paths.

    Raises:
        OSError: as the kernel refused it.
    """
    try:
        in_pieces(source, options, target)
    except OSError as error:
        if error.errno not in _FALLBACK:
            raise
        try:
            from_layers_directory(source, options, target)
        except OSError as second:
            raise second from error


def lower_layers(options: Options) -> list[str]:
    """The paths of an overlay's lower layers, the uppermost first."""
    return [value for key, value in _pieces(options) if key == "lowerdir+" and value is not None]


def in_pieces(source: str, options: Options, target: str) -> None:
    """Hand the options over one by one."""
    context = syscall(_FSOPEN, b"overlay", _CLOEXEC)
    try:
        _configure(context, _SET_STRING, "source", source)
        if options.flags & mount_options.RDONLY:
            _configure(context, _SET_FLAG, "ro", None)
        for key, value in _pieces(options):
            if value is None:
                _configure(context, _SET_FLAG, key, None)
            elif len(os.fsencode(value)) > _LONGEST_VALUE:
                _configure_with_descriptor(context, key, value)
            else:
                _configure(context, _SET_STRING, key, value)
        syscall(_FSCONFIG, context, _CREATE, None, None, 0)
        attributes = sum(attribute for flag, attribute in _ATTRIBUTES.items() if options.flags & flag)
        made = syscall(_FSMOUNT, context, _CLOEXEC, attributes)
    except OSError as error:
        raise OSError(error.errno, _reason(context, error)) from error
    finally:
        os.close(context)
    try:
        syscall(_MOVE_MOUNT, made, b"", _AT_FDCWD, os.fsencode(target), _EMPTY_PATH)
    finally:
        os.close(made)


def from_layers_directory(source: str, options: Options, target: str) -> None:
    """Shorten every layer's path to one relative to the directory that all have in common.

    Raises:
        OSError: as the kernel refused it; E2BIG if the options are too long nevertheless.
    """
    lower = lower_layers(options)
    base = os.path.commonpath([os.path.dirname(path) for path in lower]) if lower else ""
    if not os.path.isabs(base):
        raise OSError(errno.E2BIG, "the layers' paths have no directory in common")
    short = ":".join(re.sub(r"([:\\])", r"\\\1", os.path.relpath(path, base)) for path in lower)
    rest = [option for option in options.data if not option.startswith("lowerdir=")]
    data = os.fsencode(",".join([*rest, f"lowerdir={short}"]))
    if len(data) >= 4096:
        raise OSError(errno.E2BIG, f"the options for {len(lower)} layers are longer than a page")
    failures: list[OSError] = []
    place = os.path.abspath(target)

    def mount() -> None:
        try:
            # A working directory of this thread's own: everybody else's stays.
            call("unshare", _CLONE_FS)
            os.chdir(base)
            call("mount", os.fsencode(source), os.fsencode(place), b"overlay", options.flags, data)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=mount, name="mount")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _pieces(options: Options) -> Iterator[tuple[str, str | None]]:
    for option in options.data:
        key, equals, value = option.partition("=")
        if key == "lowerdir" and "::" not in value:
            for layer in re.split(r"(?<!\\):", value):
                yield "lowerdir+", re.sub(r"\\(.)", r"\1", layer)
        else:
            yield key, value if equals else None


def _configure(context: int, command: int, key: str, value: str | None) -> None:
    syscall(_FSCONFIG, context, command, key.encode(), None if value is None else os.fsencode(value), 0)


def _configure_with_descriptor(context: int, key: str, value: str) -> None:
    if key not in (*_DIRECTORIES, "lowerdir+"):
        raise OSError(errno.ENAMETOOLONG, f"option {key} is longer than {_LONGEST_VALUE} bytes")
    descriptor = os.open(value, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscall(_FSCONFIG, context, _SET_FD, key.encode(), None, descriptor)
    finally:
        os.close(descriptor)


def _reason(context: int, error: OSError) -> str:
    """What the kernel wrote down about the failure, if anything."""
    try:
        text = os.read(context, 1024).decode(errors="replace").strip()
    except OSError:
        return error.strerror or ""
    return f"{error.strerror} ({text.removeprefix('e ')})"
