"""Services that run without a supervisor: found by who listens on their sockets, and ended."""

import contextlib
import os
import select
import signal
import socket
import struct
import time
from pathlib import Path

from carina.config import Config, daemon, socket_path


def listener(path: Path) -> int | None:
    """Pid of the process that listens on a unix socket (SO_PEERCRED holds who called listen(2)); None for nobody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(2)
        try:
            peer.connect(os.fspath(path))
        except OSError:
            return None
        pid, _, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid)


def find(config: Config) -> dict[str, int]:
    """Service -> pid, of those services of the configuration that run and are not external."""
    found = {}
    for service, address in config.services.items():
        if service in config.external:
            continue
        pid = listener(socket_path(address))
        if pid is not None and pid != os.getpid() and _is(pid, daemon(service)):
            found[service] = pid
    return found


def _is(pid: int, name: str) -> bool:
    """Whether a process is the daemon of that name, so that a stranger on our socket is never ended."""
    try:
        return name.partition("-")[0].encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def end(pids: list[int], *, grace: float) -> None:
    """SIGTERM, wait for `grace` seconds at the most, then SIGKILL. Uses pidfds, so that a reused pid is safe."""
    descriptors = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            descriptors.append(os.pidfd_open(pid))
    try:
        for descriptor in descriptors:
            _send(descriptor, signal.SIGTERM)
        limit = time.monotonic() + grace
        left = _still_running(descriptors, limit)
        for descriptor in left:
            _send(descriptor, signal.SIGKILL)
        _still_running(left, time.monotonic() + 2)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _send(descriptor: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, number)


def _still_running(descriptors: list[int], limit: float) -> list[int]:
    left = list(descriptors)
    while left and (remaining := limit - time.monotonic()) > 0:
        ended, _, _ = select.select(left, [], [], remaining)
        left = [descriptor for descriptor in left if descriptor not in ended]
    return left
