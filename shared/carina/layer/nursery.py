"""The process that workers are forked from: an interpreter that has loaded what they need, and does nothing else.

Loading it takes a tenth of a second of a processor, a fork a hundredth of that: for an image of many small layers that
is most of the work. It has one thread, reads nothing of what strangers wrote, and never runs a worker's code itself.

For each message on the socket that is its standard input, a worker gets the message's descriptors as its own, from 0
on, and the sender gets a pidfd of it. When the socket ends, so does this process; with it, the kernel ends its workers.
"""

import contextlib
import fcntl
import gc
import os
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Final

from carina.linux import confine

MAX_DESCRIPTORS: Final = 8
STARTED: Final = b"\1"
FAILED: Final = b"\0"
"""What a reply begins with; after the second, an error in words."""
_ASIDE: Final = 64
"""Above all numbers that a worker's descriptors get."""


def main(parent: int) -> None:
    """Serve until standard input, a socket whose other end `parent` has, ends."""
    # "Parent" means the thread that started us (prctl(2)): one of a pool, which lives as long as its process.
    confine.die_with_parent(parent)
    from carina.layer import worker  # Here: whoever only talks to this process needs none of it.

    channel = socket.socket(fileno=os.dup(0))
    signal.signal(signal.SIGCHLD, _reap)
    gc.collect()
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 1, MAX_DESCRIPTORS)
        if not message:
            os._exit(0)
        _fork(channel, descriptors, worker.main)


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _fork(channel: socket.socket, descriptors: Sequence[int], work: Callable[[int], None]) -> None:
    own = os.getpid()
    # Reaped before it has a pidfd, its number could be another's.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        pid = os.fork()
        if pid == 0:
            try:
                _become(descriptors)
                work(own)
            finally:
                os._exit(1)
        process = os.pidfd_open(pid)
        socket.send_fds(channel, [STARTED], [process])
        os.close(process)
    except OSError as error:
        channel.send(FAILED + (error.strerror or str(error)).encode())
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        for descriptor in descriptors:
            os.close(descriptor)


def _become(descriptors: Sequence[int]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    for number, descriptor in enumerate([fcntl.fcntl(one, fcntl.F_DUPFD, _ASIDE) for one in descriptors]):
        os.dup2(descriptor, number)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.closerange(len(descriptors), most)
