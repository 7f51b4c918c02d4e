"""The restart monitor: containers are what their `containerd.io/restart.*` labels say, looked at once per interval.

As containerd's: status `running` starts what does not run and whose policy wants it, `stopped` ends what runs. All that
it knows is in the labels and the tasks, so nothing is lost with taskd. A container that a client is just starting is
left alone: without a task for one interval after its record was made, and with a created task until the next look.

Namespaces of tenants are not looked at: whoever may write a container's record there would have its specification, and
the program of its log URI, run as root.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from signal import SIGKILL
from typing import Final, Protocol

from carina import context
from carina.aio.finish import finish
from carina.containers import Container, ContainerStore
from carina.errors import AlreadyExists, CarinaError, InvalidArgument, NotFound
from carina.mount import Mount
from carina.namespaces import NamespaceStore
from carina.tasks import Process, Status, Stdio, TaskService
from taskd.policy import COUNT, LOG_URI, RUNNING, STATUS, STOPPED, count, restarts

_FILTER: Final = f'labels."{STATUS}"'
_METADATA_SECONDS: Final = 20.0
_END_SECONDS: Final = 60.0
_AT_ONCE: Final = 8
"""Containers that are started or ended at the same time."""
_RETRY_SECONDS: Final = 1.0
_PATIENCE: Final = 10
"""Failures in a row before something is said."""
_REMEMBERED: Final = 10_000

log = logging.getLogger(__name__)


class _Mounts(Protocol):
    async def mounts(self, key: str) -> Sequence[Mount]: ...


class RestartMonitor:
    def __init__(
        self,
        tasks: TaskService,
        containers: ContainerStore,
        namespaces: NamespaceStore,
        snapshotter: Callable[[str], _Mounts],
        *,
        interval: float,
        tenants: Collection[str] = (),
    ) -> None:
        self._tenants = tenants
        self._tasks, self._containers, self._namespaces = tasks, containers, namespaces
        self._snapshotter, self._interval = snapshotter, interval
        self._created: dict[tuple[str, str], int] = {}
        """Pids of tasks that the last look found created and not started."""
        self._said: dict[tuple[str, str], str] = {}
        """The last complaint about each container: it is made once, not at every look."""

    async def run(self) -> None:
        """For ever."""
        failures = 0
        while True:
            try:
                await self.look()
                failures = 0
            except CarinaError as error:
                failures += 1
                # metadatad may be starting, as we are.
                if failures == _PATIENCE:
                    log.warning("containers that are to run are not looked after now: %s", error)
            await asyncio.sleep(min(self._interval, _RETRY_SECONDS) if failures else self._interval)

    async def look(self) -> None:
        """Look at every container with a status label once, and do what is to be done.

        Raises:
            CarinaError: the namespaces can't be listed.
        """
        with context.use(context.Call()), context.deadline(_METADATA_SECONDS):
            found = await self._namespaces.list()
        for namespace in found:
            if namespace.name in self._tenants:
                continue
            with context.use(context.Call(namespace=namespace.name)):
                with context.deadline(_METADATA_SECONDS):
                    containers = await self._containers.list([_FILTER])
                limit = asyncio.Semaphore(_AT_ONCE)
                async with asyncio.TaskGroup() as group:
                    for container in containers:
                        name = f"restart {namespace.name}/{container.id}"
                        group.create_task(self._attend(container, limit), name=name)

    async def _attend(self, container: Container, limit: asyncio.Semaphore) -> None:
        key = (context.namespace(), container.id)
        try:
            async with limit:
                await self._settle(container)
            self._said.pop(key, None)
        except CarinaError as error:
            if self._said.get(key) != str(error):
                if len(self._said) >= _REMEMBERED:
                    self._said.clear()
                self._said[key] = str(error)
                log.warning("container %s/%s is not made %s: %s", *key, container.labels[STATUS], error)

    async def _settle(self, container: Container) -> None:
        try:
            process = await self._tasks.get(container.id)
        except NotFound:
            process = None
        match container.labels[STATUS]:
            case str(wanted) if wanted == RUNNING:
                if not self._is_left_alone(container, process) and restarts(container.labels, process):
                    await self._start(container, process)
            case str(wanted) if wanted == STOPPED:
                if process is not None and process.status in (Status.CREATED, Status.RUNNING, Status.PAUSED):
                    await self._end(container.id)
            case _:
                pass  # containerd knows no other, and does nothing

    def _is_left_alone(self, container: Container, process: Process | None) -> bool:
        key = (context.namespace(), container.id)
        before = self._created.pop(key, 0)
        if process is None:
            made = container.created_at
            return made is not None and datetime.now(UTC) - made < timedelta(seconds=self._interval)
        if process.status is Status.CREATED:
            self._created[key] = process.pid
            return before != process.pid
        # Unknown: a shim that does not answer may have a container that runs.
        return process.status is not Status.STOPPED

    async def _end(self, id: str) -> None:
        """Kill a task's processes, and delete it."""
        with context.deadline(_END_SECONDS):
            try:
                await self._tasks.kill(id, SIGKILL, all=True)
                await self._tasks.wait(id)
            except NotFound:
                pass  # it has ended by itself
            try:
                await self._tasks.delete(id)
            except NotFound:
                pass

    async def _start(self, container: Container, process: Process | None) -> None:
        id, times = container.id, count(container.labels) + 1
        stdio = _stdio(container)
        with context.deadline(_METADATA_SECONDS):
            rootfs: Sequence[Mount] = ()
            if container.snapshot_key:
                rootfs = await self._snapshotter(container.snapshotter).mounts(container.snapshot_key)
            await self._containers.update(Container(id=id, labels={COUNT: str(times)}), [f"labels.{COUNT}"])
        if process is not None:
            await self._end(id)
        try:
            await self._tasks.create(id, rootfs=rootfs, stdio=stdio)
        except AlreadyExists:
            return  # somebody else was faster
        await finish(self._begin(id))
        log.info("container %s/%s was started again, for the %d. time", context.namespace(), id, times)

    async def _begin(self, id: str) -> None:
        """Start the task that was created, unless its container has gone meanwhile."""
        try:
            with context.deadline(_METADATA_SECONDS):
                await self._containers.get(id)
            await self._tasks.start(id)
        except CarinaError:
            await self._end(id)
            raise


def _stdio(container: Container) -> Stdio:
    """What the log label says; nothing is kept without it.

    Raises:
        InvalidArgument: the container has no specification that can be read, or the label is no URI.
    """
    uri = container.labels.get(LOG_URI, "")
    if uri and not uri.startswith(("binary://", "file://", "fifo://", "/")):
        raise InvalidArgument(f"label {LOG_URI} is {uri[:128]!r}: expected binary:// or file://")
    try:
        process = json.loads(container.spec.value if container.spec is not None else b"").get("process") or {}
        terminal = bool(process.get("terminal"))
    except (ValueError, AttributeError, RecursionError) as error:
        raise InvalidArgument(f"container {container.id} has no valid spec") from error
    return Stdio(stdout=uri, stderr="" if terminal else uri, terminal=terminal)
