"""What is left of shims: those that nobody can reach any more are killed, and the sockets of dead ones removed.

A shim's working directory is its bundle: by that it is found. A runtime that outlives the shim which has started it,
to create a container, is found by the bundle among its arguments; it would go on making what is being removed.
"""

import contextlib
import json
import logging
import os
import select
import signal
import stat
from pathlib import Path
from typing import Final

from carina.aio.threads import in_thread
from carina.config import socket_path
from carina.errors import CarinaError
from carina.linux.errnos import translated
from taskd.bundle import Bundle

log = logging.getLogger(__name__)

_END_SECONDS: Final = 2.0
"""How long a killed process may take to be gone."""
_CONTROL_GROUPS: Final = Path("/sys/fs/cgroup")


def _kill_leftovers(bundle: Bundle, *, shared: bool) -> int:
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
            if _is_left(name, bundle, shared=shared):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                select.select([descriptor], [], [], _END_SECONDS)
                count += 1
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return count


def _is_left(pid: str, bundle: Bundle, *, shared: bool) -> bool:
    if not shared and os.readlink(f"/proc/{pid}/cwd") == str(bundle.path):
        return True
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        arguments = file.read().split(b"\0")
    return b"create" in arguments and b"--bundle" in arguments and os.fsencode(bundle.path) in arguments


def _remove_control_groups(bundle: Bundle) -> None:
    """A runtime that was killed as it made a container leaves its control groups, and does not know of them later.

    Only those are removed that are named as the container, and that nobody is in (cgroups(7): EBUSY otherwise).
    """
    try:
        spec = json.loads((bundle.path / "config.json").read_bytes())
        path = spec["linux"]["cgroupsPath"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    if not isinstance(path, str) or not path.startswith("/") or path.rpartition("/")[2] != bundle.id or ".." in path:
        return
    for base in (_CONTROL_GROUPS, *_CONTROL_GROUPS.glob("*/")):
        with contextlib.suppress(OSError):
            os.rmdir(f"{base}{path}")


async def remove_control_groups(bundle: Bundle) -> None:
    await in_thread(_remove_control_groups, bundle)


async def kill_leftovers(bundle: Bundle, *, shared: bool = False) -> None:
    """A shim that is `shared` with other containers goes on, whatever its working directory.

    Raises:
        ResourceExhausted: there is no descriptor left to look with.
    """
    if await in_thread(lambda: _kill_leftovers(bundle, shared=shared)):
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
