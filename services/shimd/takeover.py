"""Taking containers over from a shim that died: those whose bundles name our socket.

Their processes are not our children. A process descriptor tells when one ends, and from Linux 6.15 how, once it
has been reaped by whoever inherited it; before that, and where it ended while nobody watched, the status is 255.
"""

import os
import time
from typing import Any, Final

from carina.linux import pidfd
from carina.mount import Mount
from shimd import journal
from shimd.container import Container
from shimd.loop import READ, Loop
from shimd.process import STOPPED, Group, Process, start_time
from shimd.state import read
from shimd.stdio import Stdio

UNKNOWN: Final = 255
_REAPED_SECONDS: Final = 5.0
_PAUSE: Final = 0.01


def containers(group: Group, directory: str) -> list[Container]:
    """Every container of ours whose bundle is in `directory`."""
    found = []
    for name in sorted(os.listdir(directory)):
        bundle = os.path.join(directory, name)
        record = None if name.startswith(".") else read(bundle)
        if record is None or record.get("socket") != group.socket:
            continue
        try:
            found.append(_container(group, bundle, record))
        except (KeyError, TypeError, ValueError) as error:
            text = f"container {name} can't be taken over: its state is damaged: {error}"
            journal.write("error", text, bundle=bundle)
    return found


def _container(group: Group, bundle: str, record: dict[str, Any]) -> Container:
    mounts = [Mount(type=k, source=s, target=t, options=tuple(options)) for k, s, t, options in record["mounts"]]
    first, *rest = record["processes"]
    container = Container(
        group, str(record["id"]), bundle, stdio=_stdio(first), mounts=mounts, options=record["options"]
    )
    container.paused = bool(record["paused"])
    container.init.restore(first)
    for process in rest:
        container.restore_exec(process, _stdio(process))
    for process in (container.init, *container.execs.values()):
        if process.status != STOPPED and process.pid:
            adopt(group.loop, process, bundle)
    container.watch_memory()
    return container


def _stdio(record: dict[str, Any]) -> Stdio:
    stdin, stdout, stderr, terminal = record["stdio"]
    return Stdio(stdin=stdin, stdout=stdout, stderr=stderr, terminal=terminal)


def adopt(loop: Loop, process: Process, bundle: str) -> None:
    """Be told of the end of a process that is not our child."""
    descriptor = pidfd.open_process(process.pid)
    if descriptor is None or start_time(process.pid) != process.started:
        if descriptor is not None:
            os.close(descriptor)
        reason = f"process {process.pid} ended while no shim watched it: its exit status is not known"
        journal.write("warning", reason, bundle=bundle)
        process.note_end(UNKNOWN, time.time_ns())
        return

    async def ended() -> None:
        at, end = time.time_ns(), time.monotonic() + _REAPED_SECONDS
        status = pidfd.exit_status(descriptor)
        while status is None and os.path.exists(f"/proc/{process.pid}") and time.monotonic() < end:
            await loop.sleep(_PAUSE)
            status = pidfd.exit_status(descriptor)
        os.close(descriptor)
        if status is None:
            reason = f"process {process.pid} was another shim's child, and the kernel does not tell its exit status"
            journal.write("warning", reason, bundle=bundle)
        process.note_end(UNKNOWN if status is None else status, at)

    def readable() -> None:
        loop.unwatch(descriptor)
        loop.spawn(ended(), f"end of {process.pid}")

    loop.watch(descriptor, READ, readable)
