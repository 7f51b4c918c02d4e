"""Giving privileges up for good, in a process that is about to read what strangers wrote."""

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Collection
from typing import Final

from carina.linux.libc import call, library

CHOWN: Final = 0
DAC_OVERRIDE: Final = 1
DAC_READ_SEARCH: Final = 2
FOWNER: Final = 3
FSETID: Final = 4
MKNOD: Final = 27
SETFCAP: Final = 31
"""Numbers of capabilities(7)."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_CLONE_NEWIPC: Final = 0x08000000
_CLONE_NEWNET: Final = 0x40000000
_CAPABILITY_VERSION_3: Final = 0x20080522


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, process `parent`, is gone."""
    call("prctl", _PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def set_name(name: str) -> None:
    """The name of this process, as proc_pid_comm(5) has it; 15 bytes at the most."""
    call("prctl", _PR_SET_NAME, ctypes.create_string_buffer(name.encode()), 0, 0, 0)


def leave_network() -> None:
    """Move this process to a network and System V namespace of its own, without any interface, where it may."""
    try:
        call("unshare", _CLONE_NEWNET | _CLONE_NEWIPC)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EINVAL, errno.ENOSPC):
            raise


def keep_capabilities(kept: Collection[int]) -> None:
    """Drop every capability but `kept`, and the ways to get one back. Only for a process with one thread."""
    prctl = library().prctl
    for number in range(64):
        # EINVAL past the last one that the kernel knows.
        if number not in kept and prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0) < 0:
            break
    call("prctl", _PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0)
    bits = sum(1 << number for number in kept)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    # Effective, permitted, inheritable: the low words of the three, then the high ones.
    call("capset", header, struct.pack("=6I", low, low, 0, high, high, 0))
