"""Serves any `TaskService` over gRPC."""

from carina.api.containerd import types
from carina.api.containerd.services.tasks import v1 as wire
from carina.api.containerd.v1 import types as process
from carina.api.google.protobuf import Any, Empty
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import InvalidArgument
from carina.mount import Mount
from carina.tasks import Exit, Process, Stdio, TaskService
from carina.typed import TypedValue


def typed(value: Any | None) -> TypedValue | None:
    return None if value is None else TypedValue(value.type_url, value.value)


def _any(value: TypedValue | None) -> Any | None:
    return None if value is None else Any(type_url=value.type_url, value=value.value)


def _required(value: Any | None, noun: str) -> TypedValue:
    if value is None:
        raise InvalidArgument(f"{noun} must be given")
    return TypedValue(value.type_url, value.value)


def _stdio(message: wire.CreateTaskRequest | wire.ExecProcessRequest) -> Stdio:
    return Stdio(stdin=message.stdin, stdout=message.stdout, stderr=message.stderr, terminal=message.terminal)


def _process(found: Process) -> process.Process:
    return process.Process(
        container_id=found.container_id,
        id=found.exec_id or found.container_id,
        pid=found.pid,
        status=process.Status(found.status.value),
        stdin=found.stdio.stdin,
        stdout=found.stdio.stdout,
        stderr=found.stdio.stderr,
        terminal=found.stdio.terminal,
        exit_status=found.exit_status,
        exited_at=found.exited_at,
    )


def _descriptor(wired: types.Descriptor | None) -> Descriptor | None:
    if wired is None:
        return None
    return Descriptor(
        media_type=wired.media_type,
        digest=Digest(wired.digest),
        size=wired.size,
        annotations=dict(wired.annotations),
    )


def _deleted(exit: Exit) -> wire.DeleteResponse:
    return wire.DeleteResponse(id=exit.exec_id, pid=exit.pid, exit_status=exit.status, exited_at=exit.exited_at)


class TasksService(wire.TasksBase):
    """The Tasks API over an implementation."""

    def __init__(self, tasks: TaskService) -> None:
        self._tasks = tasks

    async def create(self, message: wire.CreateTaskRequest) -> wire.CreateTaskResponse:
        pid = await self._tasks.create(
            message.container_id,
            rootfs=[
                Mount(type=mount.type, source=mount.source, target=mount.target, options=tuple(mount.options))
                for mount in message.rootfs
            ],
            stdio=_stdio(message),
            checkpoint=_descriptor(message.checkpoint),
            options=typed(message.options),
            runtime_path=message.runtime_path,
        )
        return wire.CreateTaskResponse(container_id=message.container_id, pid=pid)

    async def start(self, message: wire.StartRequest) -> wire.StartResponse:
        return wire.StartResponse(pid=await self._tasks.start(message.container_id, message.exec_id))

    async def delete(self, message: wire.DeleteTaskRequest) -> wire.DeleteResponse:
        return _deleted(await self._tasks.delete(message.container_id))

    async def delete_process(self, message: wire.DeleteProcessRequest) -> wire.DeleteResponse:
        if not message.exec_id:
            raise InvalidArgument("exec id must not be empty")
        return _deleted(await self._tasks.delete(message.container_id, message.exec_id))

    async def get(self, message: wire.GetRequest) -> wire.GetResponse:
        return wire.GetResponse(process=_process(await self._tasks.get(message.container_id, message.exec_id)))

    async def list(self, message: wire.ListTasksRequest) -> wire.ListTasksResponse:
        # containerd takes no notice of the filter either.
        return wire.ListTasksResponse(tasks=[_process(found) for found in await self._tasks.list()])

    async def kill(self, message: wire.KillRequest) -> Empty:
        await self._tasks.kill(message.container_id, message.signal, exec_id=message.exec_id, all=message.all)
        return Empty()

    async def exec(self, message: wire.ExecProcessRequest) -> Empty:
        if not message.exec_id:
            raise InvalidArgument("exec id must not be empty")
        spec = _required(message.spec, "the spec of the process")
        await self._tasks.exec(message.container_id, message.exec_id, spec, _stdio(message))
        return Empty()

    async def resize_pty(self, message: wire.ResizePtyRequest) -> Empty:
        await self._tasks.resize_pty(message.container_id, message.width, message.height, exec_id=message.exec_id)
        return Empty()

    async def close_io(self, message: wire.CloseIoRequest) -> Empty:
        await self._tasks.close_io(message.container_id, exec_id=message.exec_id, stdin=message.stdin)
        return Empty()

    async def pause(self, message: wire.PauseTaskRequest) -> Empty:
        await self._tasks.pause(message.container_id)
        return Empty()

    async def resume(self, message: wire.ResumeTaskRequest) -> Empty:
        await self._tasks.resume(message.container_id)
        return Empty()

    async def list_pids(self, message: wire.ListPidsRequest) -> wire.ListPidsResponse:
        found = await self._tasks.pids(message.container_id)
        return wire.ListPidsResponse(
            processes=[process.ProcessInfo(pid=entry.pid, info=_any(entry.info)) for entry in found]
        )

    async def checkpoint(self, message: wire.CheckpointTaskRequest) -> wire.CheckpointTaskResponse:
        found = await self._tasks.checkpoint(message.container_id, typed(message.options))
        return wire.CheckpointTaskResponse(
            descriptors=[
                types.Descriptor(
                    media_type=entry.media_type,
                    digest=str(entry.digest),
                    size=entry.size,
                    annotations=dict(entry.annotations),
                )
                for entry in found
            ]
        )

    async def update(self, message: wire.UpdateTaskRequest) -> Empty:
        resources = _required(message.resources, "resources")
        await self._tasks.update(message.container_id, resources, dict(message.annotations))
        return Empty()

    async def metrics(self, message: wire.MetricsRequest) -> wire.MetricsResponse:
        found = await self._tasks.metrics(message.filters)
        return wire.MetricsResponse(
            metrics=[types.Metric(timestamp=entry.timestamp, id=entry.id, data=_any(entry.data)) for entry in found]
        )

    async def wait(self, message: wire.WaitRequest) -> wire.WaitResponse:
        exit = await self._tasks.wait(message.container_id, message.exec_id)
        return wire.WaitResponse(exit_status=exit.status, exited_at=exit.exited_at)
