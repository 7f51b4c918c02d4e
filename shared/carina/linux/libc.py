"""The C library, for the calls that Python's `os` does not have."""

import ctypes
import functools
import os


@functools.cache
def library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> int:
    """Call a function that answers -1 and sets errno when it fails.

    Raises:
        OSError: as the function failed.
    """
    result: int = getattr(library(), function)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def syscall(number: int, *arguments: object) -> int:
    """Like `call`, for system calls that the C library has no function for."""
    return call("syscall", ctypes.c_long(number), *map(_whole, arguments))


def _whole(argument: object) -> object:
    """A variadic function reads whole registers: ctypes would fill only half of one for an int."""
    return ctypes.c_long(argument) if isinstance(argument, int) else argument
