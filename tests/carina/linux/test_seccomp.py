"""The filter of system calls, in processes that put it on themselves."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

import carina

_ROOT = Path(carina.__file__).parent.parent
_CONFINED = """
import ctypes, errno, os, socket, sys, threading
sys.path.insert(0, {root!r})
from carina.linux import seccomp
libc = ctypes.CDLL(None, use_errno=True)
def tried(*arguments):
    ctypes.set_errno(0)
    libc.syscall(*map(ctypes.c_long, arguments))
    return errno.errorcode.get(ctypes.get_errno(), "done")
assert seccomp.allow_only(seccomp.RUNTIME | seccomp.LOOK | seccomp.CHANGE | seccomp.TALK)
"""


def _confined(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _CONFINED.format(root=str(_ROOT)) + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("socket", 41),
        ("connect", 42),
        ("execve", 59),
        ("fork", 57),
        ("vfork", 58),
        ("kill", 62),
        ("ptrace", 101),
        ("chroot", 161),
        ("mount", 165),
        ("pivot_root", 155),
        ("init_module", 175),
        ("unshare", 272),
        ("setns", 308),
        ("prctl", 157),
        ("bpf", 321),
        ("keyctl", 250),
        ("add_key", 248),
        ("io_uring_setup", 425),
        ("open_by_handle_at", 304),
        ("userfaultfd", 323),
        ("perf_event_open", 298),
        ("process_vm_readv", 310),
        ("memfd_create", 319),
        ("open_tree", 428),
        ("fsopen", 430),
        ("ioctl", 16),
        ("getpid by x32's numbers", 0x40000000 + 39),
    ],
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86_64")
def test_other_calls_are_refused(name: str, number: int) -> None:
    """A call that applying a layer does not need fails with EPERM, whoever makes it."""
    done = _confined(f"print(tried({number}, 0, 0, 0, 0, 0, 0))")
    assert (done.stdout, done.stderr) == ("EPERM\n", ""), name


def test_no_process_can_be_made() -> None:
    """clone(2) is for threads, and clone3(2), whose flags can't be seen, is not there."""
    done = _confined(
        "try: os.fork()\n"
        "except PermissionError: print('refused')\n"
        "found = []\n"
        "thread = threading.Thread(target=found.append, args=(1,)); thread.start(); thread.join()\n"
        "print(found)"
    )
    assert (done.stdout, done.stderr) == ("refused\n[1]\n", "")


def test_no_memory_becomes_executable() -> None:
    """Neither mmap(2) nor mprotect(2) makes code of data."""
    done = _confined(
        "def result(function, *arguments):\n"
        "    function.restype = ctypes.c_void_p\n"
        "    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_long] * (len(arguments) - 2)\n"
        "    ctypes.set_errno(0)\n"
        "    return function(*arguments), ctypes.get_errno() == errno.EPERM\n"
        "page, refused = result(libc.mmap, 0, 4096, 3, 0x22, -1, 0)\n"
        "print(refused, result(libc.mmap, 0, 4096, 5, 0x22, -1, 0)[1], result(libc.mprotect, page, 4096, 5)[1])"
    )
    assert (done.stdout, done.stderr) == ("False True True\n", "")
