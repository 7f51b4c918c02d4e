"""The task service over a socket."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from carina import context
from carina.api.containerd import types
from carina.api.containerd.services.tasks import v1 as wire
from carina.api.containerd.v1 import types as process
from carina.api.google.protobuf import Any
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import DataLoss
from carina.mount import Mount
from carina.rpc.client import Channel
from carina.tasks import NO_STDIO, Exit, Metric, Process, ProcessInfo, Status, Stdio
from carina.typed import TypedValue


def _any(value: TypedValue | None) -> Any | None:
    return None if value is None else Any(type_url=value.type_url, value=value.value)


def _typed(value: Any | None) -> TypedValue:
    return TypedValue("", b"") if value is None else TypedValue(value.type_url, value.value)


def _descriptor(value: Descriptor | None) -> types.Descriptor | None:
    if value is None:
        return None
    return types.Descriptor(
        media_type=value.media_type,
        digest=str(value.digest),
        size=value.size,
        annotations=dict(value.annotations),
    )


def _process(found: process.Process, container_id: str, exec_id: str) -> Process:
    return Process(
        container_id=container_id,
        exec_id=exec_id,
        pid=found.pid,
        status=Status(int(found.status)) if 0 <= int(found.status) <= Status.PAUSING.value else Status.UNKNOWN,
        stdio=Stdio(stdin=found.stdin, stdout=found.stdout, stderr=found.stderr, terminal=found.terminal),
        exit_status=found.exit_status,
        exited_at=found.exited_at,
    )


class RemoteTaskService:
    """`TaskService` of the service at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._stub = wire.TasksStub(channel)

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
        answer = await self._stub.create(
            wire.CreateTaskRequest(
                container_id=container_id,
                rootfs=[
                    types.Mount(type=mount.type, source=mount.source, target=mount.target, options=list(mount.options))
                    for mount in rootfs
                ],
                stdin=stdio.stdin,
                stdout=stdio.stdout,
                stderr=stdio.stderr,
                terminal=stdio.terminal,
                checkpoint=_descriptor(checkpoint),
                options=_any(options),
                runtime_path=runtime_path,
            )
        )
        return answer.pid

    async def start(self, container_id: str, exec_id: str = "") -> int:
        return (await self._stub.start(wire.StartRequest(container_id=container_id, exec_id=exec_id))).pid

    async def delete(self, container_id: str, exec_id: str = "") -> Exit:
        if exec_id:
            request = wire.DeleteProcessRequest(container_id=container_id, exec_id=exec_id)
            gone = await self._stub.delete_process(request)
        else:
            gone = await self._stub.delete(wire.DeleteTaskRequest(container_id=container_id))
        return Exit(exec_id=exec_id, pid=gone.pid, status=gone.exit_status, exited_at=gone.exited_at)

    async def get(self, container_id: str, exec_id: str = "") -> Process:
        answer = await self._stub.get(wire.GetRequest(container_id=container_id, exec_id=exec_id))
        if answer.process is None:
            raise DataLoss(f"task {container_id}: the answer has no process")
        return _process(answer.process, container_id, exec_id)

    async def list(self) -> Sequence[Process]:
        answer = await self._stub.list(wire.ListTasksRequest())
        return [_process(found, found.container_id or found.id, "") for found in answer.tasks]

    async def kill(self, container_id: str, signal: int, *, exec_id: str = "", all: bool = False) -> None:
        request = wire.KillRequest(container_id=container_id, exec_id=exec_id, signal=signal, all=all)
        await self._stub.kill(request)

    async def exec(self, container_id: str, exec_id: str, spec: TypedValue, stdio: Stdio = NO_STDIO) -> None:
        await self._stub.exec(
            wire.ExecProcessRequest(
                container_id=container_id,
                exec_id=exec_id,
                spec=_any(spec),
                stdin=stdio.stdin,
                stdout=stdio.stdout,
                stderr=stdio.stderr,
                terminal=stdio.terminal,
            )
        )

    async def resize_pty(self, container_id: str, width: int, height: int, *, exec_id: str = "") -> None:
        await self._stub.resize_pty(
            wire.ResizePtyRequest(container_id=container_id, exec_id=exec_id, width=width, height=height)
        )

    async def close_io(self, container_id: str, *, exec_id: str = "", stdin: bool = True) -> None:
        await self._stub.close_io(wire.CloseIoRequest(container_id=container_id, exec_id=exec_id, stdin=stdin))

    async def pause(self, container_id: str) -> None:
        await self._stub.pause(wire.PauseTaskRequest(container_id=container_id))

    async def resume(self, container_id: str) -> None:
        await self._stub.resume(wire.ResumeTaskRequest(container_id=container_id))

    async def pids(self, container_id: str) -> Sequence[ProcessInfo]:
        answer = await self._stub.list_pids(wire.ListPidsRequest(container_id=container_id))
        return [
            ProcessInfo(pid=found.pid, info=None if found.info is None else _typed(found.info))
            for found in answer.processes
        ]

    async def checkpoint(self, container_id: str, options: TypedValue | None = None) -> Sequence[Descriptor]:
        with context.no_deadline():
            answer = await self._stub.checkpoint(
                wire.CheckpointTaskRequest(container_id=container_id, options=_any(options))
            )
        return [
            Descriptor(
                media_type=found.media_type,
                digest=Digest(found.digest),
                size=found.size,
                annotations=dict(found.annotations),
            )
            for found in answer.descriptors
        ]

    async def update(
        self, container_id: str, resources: TypedValue, annotations: Mapping[str, str] | None = None
    ) -> None:
        await self._stub.update(
            wire.UpdateTaskRequest(
                container_id=container_id, resources=_any(resources), annotations=dict(annotations or {})
            )
        )

    async def metrics(self, filters: Sequence[str] = ()) -> Sequence[Metric]:
        answer = await self._stub.metrics(wire.MetricsRequest(filters=list(filters)))
        return [
            Metric(id=found.id, timestamp=found.timestamp or datetime.now(UTC), data=_typed(found.data))
            for found in answer.metrics
        ]

    async def wait(self, container_id: str, exec_id: str = "") -> Exit:
        with context.no_deadline():
            answer = await self._stub.wait(wire.WaitRequest(container_id=container_id, exec_id=exec_id))
        return Exit(exec_id=exec_id, status=answer.exit_status, exited_at=answer.exited_at)
