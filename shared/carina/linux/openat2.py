"""openat2(2): resolution of paths that can't leave a directory, whatever symbolic links and renames do meanwhile."""

import ctypes
import errno
import os
from typing import Final

from carina.linux.libc import library

_OPENAT2: Final = 437
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_IN_ROOT: Final = 0x10
_TRIES: Final = 256


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_SIZE: Final = ctypes.sizeof(_How)


def open_in_root(root: int, path: bytes, flags: int) -> int:
    """Open `path` as a process would whose root directory is `root`: `..` and absolute links stay inside.

    Raises:
        OSError: as open(2).
    """
    how = _How(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    syscall = library().syscall
    for _ in range(_TRIES):
        descriptor: int = syscall(
            ctypes.c_long(_OPENAT2), ctypes.c_int(root), path, ctypes.byref(how), ctypes.c_size_t(_SIZE)
        )
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        # EAGAIN: a rename raced with a `..`, so that the kernel can't tell whether it stayed inside.
        if number not in {errno.EAGAIN, errno.EINTR}:
            raise OSError(number, os.strerror(number), path)
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
