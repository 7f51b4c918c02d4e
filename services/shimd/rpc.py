"""The Task service, v2 and v3: requests to containers, and what they say to responses. And the Sandbox service."""

import os
from collections.abc import Awaitable, Callable
from typing import Final

from carina.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented
from carina.mount import Mount
from shimd import cgroup, metrics1, metrics2
from shimd.container import Container
from shimd.messages import METHODS, OPTIONS, PROCESS_DETAILS, SANDBOX_METHODS, timestamp
from shimd.process import Group
from shimd.sandboxes import SERVICE as SANDBOX_SERVICE
from shimd.sandboxes import Sandboxes
from shimd.stdio import Stdio
from shimd.wire import Values, decode, encode

SERVICES: Final = ("containerd.task.v2.Task", "containerd.task.v3.Task")
RUNC_OPTIONS: Final = "containerd.runc.v1.Options"
_CHECKPOINT_OPTIONS: Final = "containerd.runc.v1.CheckpointOptions"


def _stdio(request: Values) -> Stdio:
    return Stdio(
        stdin=request["stdin"], stdout=request["stdout"], stderr=request["stderr"], terminal=request["terminal"]
    )


def _options(value: Values | None) -> Values:
    if value is None or value["type_url"].rpartition("/")[2] != RUNC_OPTIONS:
        return decode(OPTIONS, b"")
    return decode(OPTIONS, value["value"])


class Service:
    def __init__(
        self,
        group: Group,
        *,
        sandbox: str,
        changed: Callable[[], None],
        ended: Callable[[], bool],
        closed: Callable[[], None],
    ) -> None:
        """`sandbox` is the id of the one that the whole group is in, if there is one.

        `changed` is called when a container has gone; `ended` when the shim shall end at once;
        `closed` when it shall end as soon as it has told everything.
        """
        self.containers: dict[str, Container] = {}
        self._sandboxes = Sandboxes(group.loop, self.containers, group=sandbox, changed=changed, ended=closed)
        self._group, self._changed, self._ended = group, changed, ended
        self._creating: set[str] = set()
        self._methods: dict[str, Callable[[Values], Awaitable[Values]]] = {
            "State": self._state,
            "Create": self._create,
            "Start": self._start,
            "Delete": self._delete,
            "Pids": self._pids,
            "Pause": self._pause,
            "Resume": self._resume,
            "Checkpoint": self._checkpoint,
            "Kill": self._kill,
            "Exec": self._exec,
            "ResizePty": self._resize,
            "CloseIO": self._close_io,
            "Update": self._update,
            "Wait": self._wait,
            "Stats": self._stats,
            "Connect": self._connect,
            "Shutdown": self._shutdown,
        }

    @property
    def busy(self) -> bool:
        return bool(self.containers or self._creating or self._sandboxes.busy)

    def forget_removed(self) -> None:
        """Let go of containers that somebody else has removed: ended, and without a bundle."""
        for id, container in list(self.containers.items()):
            if container.init.ended.done and not os.path.exists(container.bundle):
                container.close()
                del self.containers[id]

    async def answer(self, service: str, method: str, payload: bytes) -> bytes:
        """Raises CarinaError."""
        handler: Callable[[Values], Awaitable[Values]] | None = None
        if service in SERVICES:
            handler, schemas = self._methods.get(method), METHODS
        elif service == SANDBOX_SERVICE:
            handler, schemas = self._sandboxes.methods.get(method), SANDBOX_METHODS
        if handler is None:
            raise Unimplemented(f"method {service}/{method} is not served here")
        request, response = schemas[method]
        return encode(response, await handler(decode(request, payload)))

    def _container(self, id: str) -> Container:
        container = self.containers.get(id)
        if container is None:
            raise NotFound(f"task {id}: not found")
        return container

    async def _state(self, request: Values) -> Values:
        container = self._container(request["id"])
        process = container.process(request["exec_id"])
        return {
            "id": container.id,
            "bundle": container.bundle,
            "pid": process.pid,
            "status": container.status(process),
            "stdin": process.stdio.stdin,
            "stdout": process.stdio.stdout,
            "stderr": process.stdio.stderr,
            "terminal": process.stdio.terminal,
            "exit_status": process.exit_status,
            "exited_at": timestamp(process.exited_at),
            "exec_id": process.exec_id,
        }

    async def _create(self, request: Values) -> Values:
        id, bundle = request["id"], request["bundle"]
        if not id or id.startswith("-") or "/" in id:
            raise InvalidArgument(f"container id {id!r} is not valid")
        if not os.path.isabs(bundle) or not os.path.isdir(bundle):
            raise InvalidArgument(f"container {id}: bundle {bundle!r} must be the absolute path of a directory")
        self.forget_removed()
        if id in self.containers or id in self._creating:
            raise AlreadyExists(f"task {id}: already exists")
        mounts = [
            Mount(type=m["type"], source=m["source"], target=m["target"], options=tuple(m["options"]))
            for m in request["rootfs"]
        ]
        container = Container(
            self._group, id, bundle, stdio=_stdio(request), mounts=mounts, options=_options(request["options"])
        )
        self._creating.add(id)
        try:
            pid = await container.create(checkpoint=request["checkpoint"])
            self.containers[id] = container
        finally:
            self._creating.discard(id)
            self._changed()
        return {"pid": pid}

    async def _start(self, request: Values) -> Values:
        return {"pid": await self._container(request["id"]).start(request["exec_id"])}

    async def _delete(self, request: Values) -> Values:
        container = self._container(request["id"])
        process = await container.delete(request["exec_id"])
        if not request["exec_id"] and self.containers.get(container.id) is container:
            del self.containers[container.id]
            self._changed()
        exited_at = timestamp(process.exited_at)
        return {"pid": process.pid, "exit_status": process.exit_status, "exited_at": exited_at}

    async def _pids(self, request: Values) -> Values:
        container = self._container(request["id"])
        execs = {process.pid: exec_id for exec_id, process in container.execs.items() if not process.ended.done}

        def details(pid: int) -> Values | None:
            if pid not in execs:
                return None
            value = encode(PROCESS_DETAILS, {"exec_id": execs[pid]})
            return {"type_url": "containerd.runc.v1.ProcessDetails", "value": value}

        found = cgroup.processes(cgroup.paths(container.init.pid))
        return {"processes": [{"pid": pid, "info": details(pid)} for pid in found]}

    async def _pause(self, request: Values) -> Values:
        await self._container(request["id"]).pause()
        return {}

    async def _resume(self, request: Values) -> Values:
        await self._container(request["id"]).resume()
        return {}

    async def _checkpoint(self, request: Values) -> Values:
        options = request["options"]
        known = options is not None and options["type_url"].rpartition("/")[2] == _CHECKPOINT_OPTIONS
        await self._container(request["id"]).checkpoint(request["path"], options["value"] if known else b"")
        return {}

    async def _kill(self, request: Values) -> Values:
        await self._container(request["id"]).kill(request["exec_id"], request["signal"], all=request["all"])
        return {}

    async def _exec(self, request: Values) -> Values:
        spec = request["spec"]["value"] if request["spec"] is not None else b""
        self._container(request["id"]).add_exec(request["exec_id"], _stdio(request), spec)
        return {}

    async def _resize(self, request: Values) -> Values:
        process = self._container(request["id"]).process(request["exec_id"])
        process.resize(width=request["width"], height=request["height"])
        return {}

    async def _close_io(self, request: Values) -> Values:
        if request["stdin"]:
            self._container(request["id"]).process(request["exec_id"]).close_stdin()
        return {}

    async def _update(self, request: Values) -> Values:
        resources = request["resources"]["value"] if request["resources"] is not None else b""
        await self._container(request["id"]).update(resources)
        return {}

    async def _wait(self, request: Values) -> Values:
        process = self._container(request["id"]).process(request["exec_id"])
        await process.ended
        return {"exit_status": process.exit_status, "exited_at": timestamp(process.exited_at)}

    async def _stats(self, request: Values) -> Values:
        container = self._container(request["id"])
        paths = cgroup.paths(container.init.pid)
        if not paths:
            raise NotFound(f"task {container.id}: it has ended, and has no metrics")
        if cgroup.UNIFIED in paths:
            value = encode(metrics2.METRICS, metrics2.measure(paths[cgroup.UNIFIED]))
            return {"stats": {"type_url": metrics2.TYPE, "value": value}}
        return {"stats": {"type_url": metrics1.TYPE, "value": encode(metrics1.METRICS, metrics1.measure(paths))}}

    async def _connect(self, request: Values) -> Values:
        container = self.containers.get(request["id"])
        return {"shim_pid": os.getpid(), "task_pid": container.init.pid if container else 0, "version": "carina"}

    async def _shutdown(self, request: Values) -> Values:
        self.forget_removed()
        if not self.busy and request["now"]:
            self._ended()
        return {}
