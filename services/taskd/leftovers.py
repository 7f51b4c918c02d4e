"""What is left of shims: those that nobody can reach any more are killed, and the sockets of dead ones removed.

A shim's working directory is its bundle: by that it is found.
"""

import contextlib
import logging
import os
import signal
import stat

from carina.aio.threads import in_thread
from carina.config import socket_path
from carina.errors import CarinaError
from carina.linux.errnos import translated
from taskd.bundle import Bundle

log = logging.getLogger(__name__)


def _kill_leftovers(bundle: Bundle) -> int:
    """Kill processes whose working directory is the bundle: a shim that nobody can reach any more.

    Raises:
        ResourceExhausted: there is no descriptor left to look with.
    """
    count = 0
    try:
        names = os.listdir("/proc")
    except OSError as error:
        raise translated(error, f"looking for the shim of {bundle.path}") from error
    for name in names:
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            descriptor = os.pidfd_open(int(name))
        except ProcessLookupError:
            continue
        except OSError as error:
            raise translated(error, f"looking for the shim of {bundle.path}") from error
        try:
            if os.readlink(f"/proc/{name}/cwd") == str(bundle.path):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                count += 1
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return count


async def kill_leftovers(bundle: Bundle) -> None:
    if await in_thread(_kill_leftovers, bundle):
        log.warning("task %s/%s: killed a shim that did not answer", bundle.namespace, bundle.id)


def _remove_socket(address: str) -> None:
    path = socket_path(address)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()


def _remove_lock(address: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{socket_path(address)}.lock")


async def remove_socket(address: str, *, locked: bool = False) -> None:
    """Remove the socket of a shim that is dead; a killed shim leaves it behind, and nobody else would remove it.

    `locked`: it is one of ours with a lock beside its socket, and nobody starts another of its group now.
    """
    try:
        await in_thread(_remove_socket, address)
        if locked:
            await in_thread(_remove_lock, address)
    except (OSError, CarinaError) as error:
        log.warning("the socket of a dead shim remains at %s: %s", address, error)
