"""Processes by descriptor (pidfd_open(2)): a number can be reused, a descriptor means one process for ever."""

import contextlib
import fcntl
import os
import signal
import struct
from typing import Final

_INFO: Final = struct.Struct("=QQ11Ii")
"""`struct pidfd_info`: mask, cgroup id, eleven ids, exit code."""
_GET_INFO: Final = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
"""PIDFD_GET_INFO, an `_IOWR`."""
_INFO_EXIT: Final = 1 << 3


def open_process(pid: int) -> int | None:
    """A descriptor of a process, to be closed by the caller; None if there is no such process."""
    try:
        return os.pidfd_open(pid)
    except (ProcessLookupError, ValueError):
        return None


def kill(descriptor: int) -> None:
    """SIGKILL, unless the process has ended already."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)


def exit_status(descriptor: int) -> int | None:
    """As a shell would tell it (128 and the signal's number), also for a process that is not our child.

    None while the process runs or is a zombie, and where the kernel doesn't tell (before Linux 6.15).
    """
    buffer = bytearray(_INFO.pack(_INFO_EXIT, *[0] * 13))
    try:
        fcntl.ioctl(descriptor, _GET_INFO, buffer)
    except OSError:
        return None
    mask, *_, code = _INFO.unpack(buffer)
    if not mask & _INFO_EXIT:
        return None
    return os.waitstatus_to_exitcode(code) if not os.WIFSIGNALED(code) else 128 + os.WTERMSIG(code)
