"""Shims that nobody can reach any more: found by their working directory, which is their bundle, and killed."""

import logging
import os
import signal

from carina.aio.threads import in_thread
from taskd.bundle import Bundle

log = logging.getLogger(__name__)


def _kill_leftovers(bundle: Bundle) -> int:
    """Kill processes whose working directory is the bundle: a shim that nobody can reach any more."""
    count = 0
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            descriptor = os.pidfd_open(int(name))
        except OSError:
            continue
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
