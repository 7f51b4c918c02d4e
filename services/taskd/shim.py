"""Shims: the processes that hold containers and outlive us. How to start one, talk to it and clean up after it.

A shim serves the Task API over ttrpc or gRPC, v2 or v3 (the same messages). Several tasks may share one:
`start` then answers the address of the shim that is there already, and they share our connection too.
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Final, TypeVar

import betterproto2

from carina import context, tracing
from carina.aio.threads import in_thread
from carina.api.containerd import types as containerd_types
from carina.api.containerd.runc.v1 import CheckpointOptions, Options
from carina.api.containerd.runtime.bootstrap.v1 import BootstrapParams, Extension
from carina.api.containerd.task import v2 as wire
from carina.api.google.protobuf import Any, Empty
from carina.config import socket_path
from carina.errors import CarinaError, FailedPrecondition, NotFound, Unavailable, Unimplemented
from carina.mount import Mount
from carina.rpc import unary
from carina.rpc.codec import decode, encode
from carina.shim import GROUP_VARIABLE
from carina.tasks import Exit, Process, ProcessInfo, Status, Stdio
from carina.ttrpc import client as ttrpc
from carina.typed import TypedValue
from taskd import command
from taskd.bootstrap import GRPC, VERSIONS, parse_bootstrap
from taskd.bundle import Bootstrap, Bundle
from taskd.config import Config
from taskd.ownshim import running
from taskd.runtime import RUNC_CHECKPOINT_OPTIONS, RUNC_OPTIONS, is_own, is_runc

M = TypeVar("M", bound=betterproto2.Message)
CONNECT_SECONDS: Final = 5.0
_BOOTSTRAP_SINCE: Final = (2, 3)
_VERSION: Final = re.compile(rb"Version:\s*v?(\d+)\.(\d+)")
_STATE: Final = re.compile(r"^cannot \w+ (?:\w+ )?(?:a|in a|an) (?:\w+) (?:state|process|container)", re.IGNORECASE)

log = logging.getLogger(__name__)


def _any(value: TypedValue | None) -> Any | None:
    return None if value is None else Any(type_url=value.type_url, value=value.value)


def _status(value: int) -> Status:
    try:
        return Status(int(value))
    except ValueError:
        return Status.UNKNOWN


def runc_options(options: TypedValue | None, root: Path) -> TypedValue:
    """Options for runc, with its root set unless the client has set one. Other fields stay as they came."""
    if options is None or (not options.value and not options.type_url):
        options = TypedValue(RUNC_OPTIONS, b"")
    if options.type_url.rpartition("/")[2] != RUNC_OPTIONS or decode(Options, options.value).root:
        return options
    # Appended, since concatenated protobuf messages merge: fields that we don't know keep their bytes.
    return replace(options, value=options.value + encode(Options(root=str(root))))


def restore_path(options: TypedValue | None) -> str:
    """The directory of a checkpoint that the client wants a task to be restored from; empty for none."""
    if options is None or options.type_url.rpartition("/")[2] != RUNC_OPTIONS:
        return ""
    return decode(Options, options.value).criu_image_path


def checkpoint_path(options: TypedValue | None) -> str:
    """The directory that a checkpoint is to be written to; empty for none."""
    if options is None or options.type_url.rpartition("/")[2] != RUNC_CHECKPOINT_OPTIONS:
        return ""
    return decode(CheckpointOptions, options.value).image_path


@dataclass(slots=True, eq=False)
class Shim:
    """A connected shim. `lost` is called once when the connection ends, unless we closed it."""

    bootstrap: Bootstrap
    config: Config
    lost: Callable[["Shim"], None]
    pid: int = 0
    tasks: set[tuple[str, str]] = field(default_factory=set)
    """Namespace and id of each task that is on it."""
    _client: ttrpc.Client | unary.Client | None = None
    _closed: bool = False

    async def connect(self) -> None:
        """Raises Unavailable."""
        path = str(socket_path(self.bootstrap.address))
        dial = unary.dial if self.bootstrap.protocol == GRPC else ttrpc.dial
        self._client = await dial(path, seconds=CONNECT_SECONDS, lost=self._disconnected)

    def _disconnected(self) -> None:
        if not self._closed:
            self.lost(self)

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.connected

    def close(self) -> None:
        self._closed = True
        if self._client is not None:
            self._client.close()

    async def closed(self) -> None:
        if self._client is not None:
            await self._client.closed()

    async def call(
        self, method: str, request: betterproto2.Message, response: type[M], *, seconds: float | None = None
    ) -> M:
        """Call a method of the Task API, within `seconds` or else as long as any call may take."""
        if self._client is None:
            raise Unavailable(f"shim {self.bootstrap.address} is not connected")
        with context.deadline(self.config.call_seconds if seconds is None else seconds):
            return await self._call(method, request, response)

    async def _call(self, method: str, request: betterproto2.Message, response: type[M]) -> M:
        assert self._client is not None
        service = f"containerd.task.v{self.bootstrap.version}.Task"
        try:
            with tracing.span(f"shim {method}", address=self.bootstrap.address):
                return await self._client.call(f"{service}/{method}", request, response)
        except CarinaError as error:
            # The shims have no status of their own for "not in this state": they say it in words.
            if type(error) is CarinaError and _STATE.match(str(error)):
                raise FailedPrecondition(str(error)) from error
            raise

    async def call_sandbox(
        self,
        method: str,
        request: betterproto2.Message,
        response: type[M],
        *,
        seconds: float | None = None,
        endless: bool = False,
    ) -> M:
        """Call a method of the Sandbox service, which not every shim has."""
        if self._client is None:
            raise Unavailable(f"shim {self.bootstrap.address} is not connected")
        path = f"containerd.runtime.sandbox.v1.Sandbox/{method}"
        if endless:
            return await self._client.call(path, request, response)
        with context.deadline(self.config.call_seconds if seconds is None else seconds):
            return await self._client.call(path, request, response)

    async def create(
        self,
        bundle: Bundle,
        *,
        rootfs: list[Mount],
        stdio: Stdio,
        options: TypedValue | None,
        checkpoint: str,
    ) -> int:
        request = wire.CreateTaskRequest(
            id=bundle.id,
            bundle=str(bundle.path),
            rootfs=[
                containerd_types.Mount(type=m.type, source=m.source, target=m.target, options=list(m.options))
                for m in rootfs
            ],
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            checkpoint=checkpoint,
            options=_any(options),
        )
        answer = await self.call("Create", request, wire.CreateTaskResponse, seconds=self.config.create_seconds)
        return answer.pid

    async def start(self, id: str, exec_id: str) -> int:
        return (await self.call("Start", wire.StartRequest(id=id, exec_id=exec_id), wire.StartResponse)).pid

    async def state(self, id: str, exec_id: str = "", *, seconds: float | None = None) -> Process:
        request = wire.StateRequest(id=id, exec_id=exec_id)
        found = await self.call("State", request, wire.StateResponse, seconds=seconds)
        return Process(
            container_id=id,
            exec_id=exec_id,
            pid=found.pid,
            status=_status(found.status),
            stdio=Stdio(stdin=found.stdin, stdout=found.stdout, stderr=found.stderr, terminal=found.terminal),
            exit_status=found.exit_status,
            exited_at=found.exited_at,
        )

    async def delete(self, id: str, exec_id: str = "", *, seconds: float | None = None) -> Exit:
        request = wire.DeleteRequest(id=id, exec_id=exec_id)
        gone = await self.call("Delete", request, wire.DeleteResponse, seconds=seconds)
        return Exit(exec_id=exec_id, pid=gone.pid, status=gone.exit_status, exited_at=gone.exited_at)

    async def wait(self, id: str, exec_id: str) -> tuple[int, datetime | None]:
        """The end of a process, whenever that is."""
        assert self._client is not None
        with context.no_deadline():
            request = wire.WaitRequest(id=id, exec_id=exec_id)
            ended = await self._call("Wait", request, wire.WaitResponse)
        return ended.exit_status, ended.exited_at

    async def exec(self, id: str, exec_id: str, spec: TypedValue, stdio: Stdio) -> None:
        request = wire.ExecProcessRequest(
            id=id,
            exec_id=exec_id,
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            spec=_any(spec),
        )
        await self.call("Exec", request, Empty)

    async def kill(self, id: str, exec_id: str, *, signal: int, all: bool) -> None:
        await self.call("Kill", wire.KillRequest(id=id, exec_id=exec_id, signal=signal, all=all), Empty)

    async def resize_pty(self, id: str, exec_id: str, *, width: int, height: int) -> None:
        request = wire.ResizePtyRequest(id=id, exec_id=exec_id, width=width, height=height)
        await self.call("ResizePty", request, Empty)

    async def close_io(self, id: str, exec_id: str) -> None:
        await self.call("CloseIO", wire.CloseIoRequest(id=id, exec_id=exec_id, stdin=True), Empty)

    async def pause(self, id: str) -> None:
        await self.call("Pause", wire.PauseRequest(id=id), Empty)

    async def resume(self, id: str) -> None:
        await self.call("Resume", wire.ResumeRequest(id=id), Empty)

    async def pids(self, id: str) -> list[ProcessInfo]:
        answer = await self.call("Pids", wire.PidsRequest(id=id), wire.PidsResponse)
        return [
            ProcessInfo(pid=p.pid, info=None if p.info is None else TypedValue(p.info.type_url, p.info.value))
            for p in answer.processes
        ]

    async def update(self, id: str, resources: TypedValue, annotations: Mapping[str, str]) -> None:
        request = wire.UpdateTaskRequest(id=id, resources=_any(resources), annotations=dict(annotations))
        await self.call("Update", request, Empty)

    async def stats(self, id: str) -> TypedValue:
        answer = await self.call("Stats", wire.StatsRequest(id=id), wire.StatsResponse)
        if answer.stats is None:
            raise NotFound(f"task {id}: the shim has no metrics")
        return TypedValue(answer.stats.type_url, answer.stats.value)

    async def checkpoint(self, id: str, path: str, options: TypedValue | None) -> None:
        """Lasts as long as its work."""
        with context.no_deadline():
            await self._call("Checkpoint", wire.CheckpointTaskRequest(id=id, path=path, options=_any(options)), Empty)

    async def identify(self, id: str) -> None:
        """Learn the shim's own process id."""
        answer = await self.call("Connect", wire.ConnectRequest(id=id), wire.ConnectResponse)
        self.pid = answer.shim_pid

    async def shutdown(self, id: str, *, now: bool = False) -> None:
        """Ask the shim to end, which it does unless it has other tasks; it may be gone before it answers."""
        try:
            await self.call("Shutdown", wire.ShutdownRequest(id=id, now=now), Empty, seconds=3.0)
        except CarinaError as error:
            if not isinstance(error, Unavailable | NotFound):
                log.warning("shim %s did not shut down: %s", self.bootstrap.address, error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """Runs the binaries of shims."""

    config: Config
    versions: dict[tuple[Path, int, int], tuple[int, int]] = field(default_factory=dict)
    """What binaries have said of themselves, as long as they are the same files."""

    def _arguments(self, namespace: str, id: str, *last: str) -> list[str]:
        names = ("-namespace", namespace, "-address", str(self.config.gateway))
        return [*names, "-publish-binary", str(self.config.publisher), "-id", id, *last]

    def _environment(self, namespace: str) -> dict[str, str]:
        return {
            "NAMESPACE": namespace,
            "GRPC_ADDRESS": str(self.config.gateway),
            "TTRPC_ADDRESS": str(self.config.events_socket),
            "MAX_SHIM_VERSION": str(max(VERSIONS)),
            "GOMAXPROCS": "2",
        }

    async def start(
        self, bundle: Bundle, binary: Path, options: TypedValue | None, *, alone: bool = False
    ) -> Bootstrap:
        """Start a shim for a bundle, or be told of the one that will serve it. One of ours can be had for it alone.

        Raises:
            NotFound: there is no such binary.
            Unavailable: it did not start in time, and was killed.
            CarinaError: it failed, or answered nonsense.
        """
        if not alone and is_own(binary) and (found := await in_thread(running, bundle, self.config)):
            return found
        output = await command.run(
            binary,
            self._arguments(bundle.namespace, bundle.id, "start"),
            directory=bundle.path,
            environment=self._environment(bundle.namespace) | ({GROUP_VARIABLE: "container"} if alone else {}),
            stdin=await self._start_input(bundle, binary, options),
            seconds=self.config.start_seconds,
        )
        if output.status != 0:
            raise CarinaError(f"task {bundle.id}: shim {binary} failed to start: {output.text}")
        return parse_bootstrap(output.stdout, f"task {bundle.id}: shim {binary}")

    async def _start_input(self, bundle: Bundle, binary: Path, options: TypedValue | None) -> bytes:
        wrapped = _any(options)
        if await self._version(binary) < _BOOTSTRAP_SINCE:
            return b"" if wrapped is None else encode(wrapped)
        parameters = BootstrapParams(
            instance_id=bundle.id,
            namespace=bundle.namespace,
            containerd_ttrpc_address=str(self.config.events_socket),
            containerd_grpc_address=str(self.config.gateway),
            containerd_binary=str(self.config.publisher),
            extensions=[] if wrapped is None else [Extension(value=wrapped)],
        )
        return encode(parameters)

    async def _version(self, binary: Path) -> tuple[int, int]:
        """Version of one of containerd's own shims, (0, 0) for others: theirs say nothing of what `start` reads."""
        if not is_runc(binary):
            return 0, 0
        status = await in_thread(binary.stat)
        key = (binary, status.st_mtime_ns, status.st_ino)
        if key not in self.versions:
            output = await command.run(binary, ["-v"], seconds=self.config.start_seconds)
            found = _VERSION.search(output.stdout)
            self.versions[key] = (int(found[1]), int(found[2])) if found else (0, 0)
        return self.versions[key]

    async def delete(self, bundle: Bundle, binary: Path) -> Exit:
        """Have what a dead shim left behind removed: its container's processes, mounts and cgroups.

        Raises:
            CarinaError: it failed.
        """
        output = await command.run(
            binary,
            self._arguments(bundle.namespace, bundle.id, "-bundle", str(bundle.path), "delete"),
            directory=bundle.path,
            environment=self._environment(bundle.namespace),
            seconds=self.config.cleanup_seconds,
        )
        if output.status != 0:
            raise CarinaError(f"task {bundle.id}: shim {binary} failed to clean up: {output.text}")
        gone = decode(wire.DeleteResponse, output.stdout)
        return Exit(pid=gone.pid, status=gone.exit_status, exited_at=gone.exited_at)

    async def describe(self, binary: Path, options: TypedValue | None) -> TypedValue:
        """What a runtime says of itself, a `containerd.types.RuntimeInfo`.

        Raises:
            Unimplemented: the shim can't say.
        """
        wrapped = _any(options)
        output = await command.run(
            binary, ["-info"], stdin=b"" if wrapped is None else encode(wrapped), seconds=self.config.start_seconds
        )
        if output.status != 0 or not output.stdout:
            raise Unimplemented(f"shim {binary} does not describe itself: {output.text}")
        return TypedValue("containerd.types.RuntimeInfo", output.stdout)
