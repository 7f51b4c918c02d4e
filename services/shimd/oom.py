"""Telling when a container is out of memory: by an eventfd in version 1 of control groups, by memory.events in 2."""

import os
from collections.abc import Callable, Mapping

from shimd import cgroup
from shimd.loop import READ, URGENT, Loop


class Watch:
    """Calls back each time; nothing happens where the kernel does not tell."""

    def __init__(self, loop: Loop, paths: Mapping[str, str], happened: Callable[[], None]) -> None:
        self._loop, self._happened = loop, happened
        self._descriptors: list[int] = []
        self._kills = 0
        self._events = READ
        try:
            if cgroup.UNIFIED in paths:
                self._watch_events(paths[cgroup.UNIFIED])
            elif "memory" in paths:
                self._watch_control(paths["memory"])
        except OSError:
            self.close()

    def _watch_control(self, directory: str) -> None:
        told = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._descriptors.append(told)
        control = os.open(os.path.join(directory, "memory.oom_control"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            register = os.open(os.path.join(directory, "cgroup.event_control"), os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(register, f"{told} {control}".encode())
            finally:
                os.close(register)
        finally:
            os.close(control)

        def ready() -> None:
            os.eventfd_read(told)
            # The kernel tells of the group's removal in the same way.
            if os.path.exists(os.path.join(directory, "memory.oom_control")):
                self._happened()
            else:
                self.close()

        self._loop.watch(told, READ, ready)

    def _watch_events(self, directory: str) -> None:
        events = os.open(os.path.join(directory, "memory.events"), os.O_RDONLY | os.O_CLOEXEC)
        self._descriptors.append(events)
        self._events = URGENT
        self._kills = cgroup.table(directory, "memory.events").get("oom_kill", 0)

        def ready() -> None:
            try:
                os.pread(events, 4096, 0)
            except OSError:
                self.close()
                return
            kills = cgroup.table(directory, "memory.events").get("oom_kill", 0)
            if kills > self._kills:
                self._kills = kills
                self._happened()

        os.pread(events, 4096, 0)
        self._loop.watch(events, URGENT, ready)

    def close(self) -> None:
        for descriptor in self._descriptors:
            self._loop.unwatch(descriptor, self._events)
            os.close(descriptor)
        self._descriptors.clear()
