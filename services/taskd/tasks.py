"""The task service: finds the task and asks its shim."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from carina import context
from carina.aio.finish import finish
from carina.containers import ContainerStore
from carina.descriptor import Descriptor
from carina.errors import CarinaError, FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from carina.filters import Adaptor, adaptor, matcher
from carina.mount import Mount
from carina.tasks import NO_STDIO, Exit, Metric, Process, ProcessInfo, Status, Stdio
from carina.typed import TypedValue
from taskd.create import Request, create
from taskd.endpoints import Endpoints
from taskd.registry import Registry
from taskd.shim import Shim, checkpoint_path
from taskd.task import Phase, Task

_AT_ONCE: Final = 64
"""Shims that are asked at the same time for one answer."""
_METADATA_SECONDS: Final = 20.0

log = logging.getLogger(__name__)


def _fields(task: Task) -> Adaptor:
    return adaptor({"id": task.id, "namespace": task.bundle.namespace, "runtime": task.runtime or None})


class Tasks:
    """`TaskService` over shims."""

    def __init__(self, registry: Registry, containers: ContainerStore, endpoints: Endpoints) -> None:
        self._registry = registry
        self._containers = containers
        self._endpoints = endpoints

    async def create(
        self,
        container_id: str,
        *,
        rootfs: Sequence[Mount] = (),
        stdio: Stdio = NO_STDIO,
        checkpoint: Descriptor | None = None,
        options: TypedValue | None = None,
        runtime_path: str = "",
    ) -> int:
        if checkpoint is not None:
            raise Unimplemented("restoring from an image of a checkpoint is not built: name a directory in the options")
        context.namespace()
        with context.deadline(_METADATA_SECONDS):
            container = await self._containers.get(container_id)
        request = Request(
            rootfs=rootfs,
            stdio=stdio,
            options=options,
            runtime_path=runtime_path,
            checkpoint="",
            endpoint=await self._endpoints.find(container, options),
        )
        return await create(self._registry, container, request)

    async def _shim(self, id: str) -> tuple[Task, Shim]:
        task = await self._registry.live(id)
        assert task.shim is not None
        return task, task.shim

    async def start(self, container_id: str, exec_id: str = "") -> int:
        task, shim = await self._shim(container_id)
        pid = await shim.start(container_id, exec_id)
        self._registry.watch(task, exec_id, pid)
        return pid

    async def delete(self, container_id: str, exec_id: str = "") -> Exit:
        task, shim = await self._shim(container_id)
        if exec_id:
            exit = await self._deleted(task, shim, exec_id)
            process = task.processes.pop(exec_id, None)
            if process is not None:
                process.end(exit)
            return exit
        async with self._registry.hold(task):
            if task.phase is Phase.GONE:
                raise NotFound(f"task {container_id}: not found")
            return await finish(self._delete(task, shim))

    async def _delete(self, task: Task, shim: Shim) -> Exit:
        missing: NotFound | None = None
        try:
            exit = await self._deleted(task, shim, "")
        except NotFound as error:
            missing, exit = error, Exit()
        await self._registry.dismiss(task, exit)
        if missing is not None:
            raise missing
        return exit

    async def _deleted(self, task: Task, shim: Shim, exec_id: str) -> Exit:
        await self._registry.report_known(task, exec_id)
        try:
            return await shim.delete(task.id, exec_id)
        except FailedPrecondition as error:
            noun = f"process {exec_id} of task {task.id}" if exec_id else f"task {task.id}"
            raise FailedPrecondition(f"{noun} must be stopped before deletion: {error}") from error

    async def get(self, container_id: str, exec_id: str = "") -> Process:
        task = await self._registry.live(container_id)
        return await self._state(task, exec_id)

    async def _state(self, task: Task, exec_id: str = "") -> Process:
        try:
            if task.shim is None:
                raise NotFound(f"task {task.id}: not found")
            return await task.shim.state(task.id, exec_id, seconds=self._registry.config.state_seconds)
        except NotFound:
            raise
        except CarinaError as error:
            log.warning("task %s/%s: state unknown: %s", *task.key, error)
            return Process(container_id=task.id, exec_id=exec_id, pid=0 if exec_id else task.pid, status=Status.UNKNOWN)

    async def list(self) -> Sequence[Process]:
        namespace, limit = context.namespace(), asyncio.Semaphore(_AT_ONCE)

        async def state(task: Task) -> Process | None:
            async with limit:
                if task.phase is Phase.CONNECTING:
                    return Process(container_id=task.id, pid=task.pid, status=Status.UNKNOWN)
                try:
                    return await self._state(task)
                except NotFound:
                    return None

        wanted = [
            task
            for (name, _), task in sorted(self._registry.tasks.items())
            if name == namespace and task.phase in (Phase.LIVE, Phase.CONNECTING)
        ]
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(state(task), name=f"state {task.id}") for task in wanted]
        return [found for found in (task.result() for task in asked) if found is not None]

    async def kill(self, container_id: str, signal: int, *, exec_id: str = "", all: bool = False) -> None:
        _, shim = await self._shim(container_id)
        await shim.kill(container_id, exec_id, signal=signal, all=all)

    async def exec(self, container_id: str, exec_id: str, spec: TypedValue, stdio: Stdio = NO_STDIO) -> None:
        context.validate_identifier(exec_id, "exec id")
        _, shim = await self._shim(container_id)
        await shim.exec(container_id, exec_id, spec, stdio)

    async def resize_pty(self, container_id: str, width: int, height: int, *, exec_id: str = "") -> None:
        _, shim = await self._shim(container_id)
        await shim.resize_pty(container_id, exec_id, width=width, height=height)

    async def close_io(self, container_id: str, *, exec_id: str = "", stdin: bool = True) -> None:
        _, shim = await self._shim(container_id)
        if stdin:
            await shim.close_io(container_id, exec_id)

    async def pause(self, container_id: str) -> None:
        _, shim = await self._shim(container_id)
        await shim.pause(container_id)

    async def resume(self, container_id: str) -> None:
        _, shim = await self._shim(container_id)
        await shim.resume(container_id)

    async def pids(self, container_id: str) -> Sequence[ProcessInfo]:
        _, shim = await self._shim(container_id)
        return await shim.pids(container_id)

    async def checkpoint(self, container_id: str, options: TypedValue | None = None) -> Sequence[Descriptor]:
        _, shim = await self._shim(container_id)
        path = checkpoint_path(options)
        if not path:
            raise Unimplemented("checkpoints into the content store are not built: name a directory in the options")
        if not path.startswith("/"):
            raise InvalidArgument(f"checkpoint directory {path!r} must be an absolute path")
        await shim.checkpoint(container_id, path, options)
        return []

    async def update(
        self, container_id: str, resources: TypedValue, annotations: Mapping[str, str] | None = None
    ) -> None:
        _, shim = await self._shim(container_id)
        await shim.update(container_id, resources, annotations or {})

    async def metrics(self, filters: Sequence[str] = ()) -> Sequence[Metric]:
        namespace, wanted = context.namespace(), matcher(filters, _fields)
        limit = asyncio.Semaphore(_AT_ONCE)

        async def measure(task: Task) -> Metric | None:
            async with limit:
                try:
                    if task.shim is None:
                        return None
                    return Metric(id=task.id, timestamp=datetime.now(UTC), data=await task.shim.stats(task.id))
                except CarinaError as error:
                    if not isinstance(error, NotFound):
                        log.warning("task %s/%s: no metrics: %s", *task.key, error)
                    return None

        tasks = [
            task
            for (name, _), task in sorted(self._registry.tasks.items())
            if name == namespace and task.phase is Phase.LIVE and wanted(task)
        ]
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(measure(task), name=f"metrics {task.id}") for task in tasks]
        return [found for found in (task.result() for task in asked) if found is not None]

    async def wait(self, container_id: str, exec_id: str = "") -> Exit:
        task = await self._registry.live(container_id)
        return await asyncio.shield(self._registry.watch(task, exec_id).ended)
