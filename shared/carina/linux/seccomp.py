"""seccomp(2): the system calls that a process may make from now on; every other one fails with EPERM.

The filter is a program for the kernel's classic BPF machine. It looks at the number of a call and, for three of them,
at one argument: a new thread is allowed and a new process is not, and no memory becomes executable.
"""

import ctypes
import errno
import platform
import struct
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from carina.linux.libc import call

_X86_64: Final = {
    "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12,
    "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "pwrite64": 18, "sched_yield": 24,
    "mremap": 25, "madvise": 28, "dup": 32, "getpid": 39, "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47,
    "clone": 56, "exit": 60, "fcntl": 72, "ftruncate": 77, "fchdir": 81, "fchmod": 91, "fchown": 93,
    "sigaltstack": 131, "gettid": 186, "lsetxattr": 189, "fsetxattr": 190, "getxattr": 191, "lgetxattr": 192,
    "fgetxattr": 193, "listxattr": 194, "llistxattr": 195, "flistxattr": 196, "futex": 202, "getdents64": 217,
    "restart_syscall": 219, "clock_gettime": 228, "clock_nanosleep": 230, "exit_group": 231, "tgkill": 234,
    "openat": 257, "mkdirat": 258, "mknodat": 259, "fchownat": 260, "newfstatat": 262, "unlinkat": 263,
    "renameat": 264, "linkat": 265, "symlinkat": 266, "readlinkat": 267, "set_robust_list": 273, "utimensat": 280,
    "renameat2": 316, "getrandom": 318, "rseq": 334, "clone3": 435, "openat2": 437, "readlink": 89,
}  # fmt: skip
_AARCH64: Final = {
    "lsetxattr": 6, "fsetxattr": 7, "getxattr": 8, "lgetxattr": 9, "fgetxattr": 10, "listxattr": 11, "llistxattr": 12,
    "flistxattr": 13, "dup": 23, "fcntl": 25, "mknodat": 33, "mkdirat": 34, "unlinkat": 35, "symlinkat": 36,
    "linkat": 37, "renameat": 38, "ftruncate": 46, "fchdir": 50, "fchmod": 52, "fchownat": 54, "fchown": 55,
    "openat": 56, "close": 57, "getdents64": 61, "lseek": 62, "read": 63, "write": 64, "pread64": 67, "pwrite64": 68,
    "readlinkat": 78, "newfstatat": 79, "fstat": 80, "utimensat": 88, "exit": 93, "exit_group": 94, "futex": 98,
    "set_robust_list": 99, "clock_gettime": 113, "clock_nanosleep": 115, "sched_yield": 124, "restart_syscall": 128,
    "tgkill": 131, "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "getpid": 172,
    "gettid": 178, "sendto": 206, "recvfrom": 207, "sendmsg": 211, "recvmsg": 212, "brk": 214, "munmap": 215,
    "mremap": 216, "clone": 220, "mmap": 222, "mprotect": 226, "madvise": 233, "renameat2": 276, "getrandom": 278,
    "rseq": 293, "clone3": 435, "openat2": 437,
}  # fmt: skip


class _Machine(NamedTuple):
    architecture: int
    """AUDIT_ARCH_*, from linux/audit.h."""
    numbers: Mapping[str, int]


_MACHINES: Final = {
    "x86_64": _Machine(0xC000003E, _X86_64),
    "aarch64": _Machine(0xC00000B7, _AARCH64),
}

RUNTIME: Final = frozenset(
    "read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn pread64 pwrite64"
    " sched_yield mremap madvise dup getpid clone clone3 exit fcntl sigaltstack gettid futex restart_syscall"
    " clock_gettime clock_nanosleep exit_group tgkill set_robust_list getrandom rseq".split()
)
"""What an interpreter with threads needs to go on, and to read and write what is open."""
LOOK: Final = frozenset(
    "openat openat2 newfstatat getdents64 readlinkat readlink getxattr lgetxattr fgetxattr listxattr llistxattr"
    " flistxattr".split()
)
"""Looking at a tree."""
CHANGE: Final = frozenset(
    "mkdirat mknodat symlinkat linkat unlinkat renameat renameat2 fchown fchownat fchmod ftruncate utimensat lsetxattr"
    " fsetxattr fchdir".split()
)
"""Changing one."""
TALK: Final = frozenset("sendto recvfrom sendmsg recvmsg".split())
"""Messages on a socket that is open."""

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_MODE_FILTER: Final = 2
_CLONE_THREAD: Final = 0x00010000
_PROT_EXEC: Final = 4

_LOAD: Final = 0x20
_JUMP_IF_EQUAL: Final = 0x15
_JUMP_IF_BITS: Final = 0x45
_RETURN: Final = 0x06
_ALLOW: Final = 0x7FFF0000
_KILL_PROCESS: Final = 0x80000000
_ERRNO: Final = 0x00050000
_NUMBER_AT: Final = 0
_ARCHITECTURE_AT: Final = 4
_ARGUMENT_AT: Final = (16, 24, 32)
"""Low words of the first arguments in struct seccomp_data, on machines with the low byte first."""


def allow_only(calls: Collection[str]) -> bool:
    """Let this process, and all of its threads to come, make these system calls alone. For good.

    `clone` makes threads only; `mmap` and `mprotect` give no executable memory. Only for a process with one thread.

    Returns:
        Whether there is a filter for this kind of machine.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return False
    code = program(machine.architecture, {machine.numbers[name]: name for name in calls if name in machine.numbers})
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    call("prctl", _PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0)
    call("prctl", _PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), header, 0, 0)
    return True


def program(architecture: int, calls: Mapping[int, str]) -> bytes:
    """The filter, as the kernel reads it. Calls of another architecture's numbers kill the process."""
    code = [
        _step(_LOAD, _ARCHITECTURE_AT),
        _step(_JUMP_IF_EQUAL, architecture, then=1),
        _step(_RETURN, _KILL_PROCESS),
        _step(_LOAD, _NUMBER_AT),
    ]
    for number, name in sorted(calls.items()):
        if name == "clone":
            body = _if_argument(0, _CLONE_THREAD, then=_ALLOW, otherwise=_ERRNO | errno.EPERM)
        elif name == "clone3":
            # Its flags are in memory, where no filter can look; the C library takes clone(2) where there is none.
            body = _step(_RETURN, _ERRNO | errno.ENOSYS)
        elif name in ("mmap", "mprotect"):
            body = _if_argument(2, _PROT_EXEC, then=_ERRNO | errno.EPERM, otherwise=_ALLOW)
        else:
            body = _step(_RETURN, _ALLOW)
        code += [_step(_JUMP_IF_EQUAL, number, otherwise=len(body) // 8), body]
    code.append(_step(_RETURN, _ERRNO | errno.EPERM))
    return b"".join(code)


def _if_argument(position: int, bits: int, *, then: int, otherwise: int) -> bytes:
    return (
        _step(_LOAD, _ARGUMENT_AT[position])
        + _step(_JUMP_IF_BITS, bits, otherwise=1)
        + _step(_RETURN, then)
        + _step(_RETURN, otherwise)
    )


def _step(operation: int, operand: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    """struct sock_filter; `then` and `otherwise` are how many steps a jump skips."""
    return struct.pack("=HBBI", operation, then, otherwise, operand)
