"""The Sandbox service: sandboxes that are nothing but their containers, with no process to keep them open.

A sandbox is READY from its start until it is stopped, and is then remembered until it is shut down.
Where the group is the sandbox's own, which is how taskd starts the shim of a sandbox, all containers of the group are
in it: stopping the sandbox ends them, shutting it down ends the shim.
"""

import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from carina.errors import AlreadyExists, CarinaError, FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from shimd.container import Container
from shimd.loop import Future, Loop
from shimd.messages import timestamp
from shimd.process import STOPPED
from shimd.wire import Values

SERVICE: Final = "containerd.runtime.sandbox.v1.Sandbox"
READY: Final = "SANDBOX_READY"
NOT_READY: Final = "SANDBOX_NOTREADY"
"""The words that CRI has for a sandbox's state."""
_STOP_SECONDS: Final = 10
"""Between SIGTERM and SIGKILL, where the caller doesn't say."""
_KILL_SECONDS: Final = 10.0
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


class Sandbox:
    def __init__(self, id: str, ended: Future[None]) -> None:
        self.id, self.ended = id, ended
        self.started_at = self.exited_at = 0

    @property
    def state(self) -> str:
        return READY if self.started_at and not self.exited_at else NOT_READY

    def end(self) -> None:
        if not self.exited_at:
            self.exited_at = time.time_ns()
            self.ended.set(None)


class Sandboxes:
    def __init__(
        self,
        loop: Loop,
        containers: Mapping[str, Container],
        *,
        group: str,
        changed: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        """`group` is the sandbox that all containers are in, if there is one; `ended` is called when it is no more."""
        self._loop, self._containers, self._own = loop, containers, group
        self._changed, self._ended = changed, ended
        self._sandboxes: dict[str, Sandbox] = {}
        self.methods: Mapping[str, Callable[[Values], Awaitable[Values]]] = {
            "CreateSandbox": self._create,
            "StartSandbox": self._start,
            "Platform": self._platform,
            "StopSandbox": self._stop,
            "WaitSandbox": self._wait,
            "SandboxStatus": self._status,
            "PingSandbox": self._ping,
            "ShutdownSandbox": self._shutdown,
            "SandboxMetrics": self._metrics,
        }

    @property
    def busy(self) -> bool:
        return bool(self._sandboxes)

    def _sandbox(self, request: Values) -> Sandbox:
        id = request["sandbox_id"]
        sandbox = self._sandboxes.get(id)
        if sandbox is None:
            raise NotFound(f"sandbox {id}: not found")
        return sandbox

    async def _create(self, request: Values) -> Values:
        id = request["sandbox_id"]
        if not id:
            raise InvalidArgument("a sandbox id is missing")
        if id in self._sandboxes:
            raise AlreadyExists(f"sandbox {id}: already exists")
        if request["rootfs"]:
            raise Unimplemented(f"sandbox {id}: this shim's sandboxes have no root file system of their own")
        self._sandboxes[id] = Sandbox(id, self._loop.future())
        self._changed()
        return {}

    async def _start(self, request: Values) -> Values:
        sandbox = self._sandbox(request)
        if sandbox.started_at:
            raise FailedPrecondition(f"sandbox {sandbox.id} has been started already")
        sandbox.started_at = time.time_ns()
        return {"pid": os.getpid(), "created_at": timestamp(sandbox.started_at)}

    async def _platform(self, request: Values) -> Values:
        self._sandbox(request)
        machine = os.uname().machine
        return {"platform": {"os": "linux", "architecture": _ARCHITECTURES.get(machine, machine)}}

    async def _stop(self, request: Values) -> Values:
        sandbox = self._sandbox(request)
        if sandbox.id == self._own:
            await self._end_containers(request["timeout_secs"] or _STOP_SECONDS)
        sandbox.end()
        return {}

    async def _end_containers(self, seconds: float) -> None:
        """Ask every container to end, and make those that don't."""
        limit = time.monotonic() + seconds
        for number, all in ((signal.SIGTERM, False), (signal.SIGKILL, True)):
            running = [one for one in self._containers.values() if one.init.status != STOPPED]
            for container in running:
                try:
                    await container.kill("", number, all=all)
                except CarinaError:
                    pass  # ended meanwhile
            for container in running:
                await self._loop.within(container.init.ended, max(0.0, limit - time.monotonic()))
            limit = time.monotonic() + _KILL_SECONDS

    async def _wait(self, request: Values) -> Values:
        sandbox = self._sandbox(request)
        await sandbox.ended
        return {"exit_status": 0, "exited_at": timestamp(sandbox.exited_at)}

    async def _status(self, request: Values) -> Values:
        sandbox = self._sandbox(request)
        info = {"containers": ",".join(sorted(self._containers))} if sandbox.id == self._own else {}
        return {
            "sandbox_id": sandbox.id,
            "pid": os.getpid() if sandbox.state == READY else 0,
            "state": sandbox.state,
            "info": info if request["verbose"] else {},
            "created_at": timestamp(sandbox.started_at),
            "exited_at": timestamp(sandbox.exited_at),
        }

    async def _ping(self, request: Values) -> Values:
        self._sandbox(request)
        return {}

    async def _shutdown(self, request: Values) -> Values:
        """Shutting down what is not there is no error: whoever asks again may not have had the answer."""
        sandbox = self._sandboxes.get(request["sandbox_id"])
        if sandbox is None:
            return {}
        await self._stop({"sandbox_id": sandbox.id, "timeout_secs": 0})
        self._sandboxes.pop(sandbox.id, None)
        self._changed()
        if sandbox.id == self._own:
            self._ended()
        return {}

    async def _metrics(self, request: Values) -> Values:
        id = self._sandbox(request).id
        raise Unimplemented(f"sandbox {id}: it has no process of its own to be measured: ask for its tasks' metrics")
