"""Our own sandbox controller, containerd's `shim`: each sandbox is a shim that serves the Sandbox service.

The shim is started for the sandbox's record and outlives taskd; tasks whose container names the sandbox are created on
it. A sandbox that ends is reported once, also where its shim died; it is remembered until it is shut down.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from carina import context
from carina.aio.finish import finish
from carina.aio.threads import in_thread
from carina.api.containerd.runtime.sandbox import v1 as wire
from carina.api.containerd.types import Mount as WireMount
from carina.errors import AlreadyExists, CarinaError, InvalidArgument, NotFound, Unavailable, Unimplemented
from carina.mount import Mount
from carina.platforms import Platform
from carina.rpc.any import value_from_wire, value_to_wire
from carina.sandboxes import End, Instance, Reading, Sandbox, SandboxStore, State
from carina.typed import TypedValue
from taskd import log as shim_log
from taskd import rpc
from taskd.bundle import Bundle, bundles
from taskd.config import Config
from taskd.leftovers import remove_socket
from taskd.outbox import Kind, Outbox, Subject
from taskd.runtime import find_shim
from taskd.sandbox import Memory, Phase, Sandboxed, recall, remember
from taskd.sandboxend import disconnected, end_shim
from taskd.shim import Launcher, Shim

UNKNOWN: Final = 255
_METADATA_SECONDS: Final = 20.0
_END_SECONDS: Final = 10.0
"""For a shim to end after it was asked to."""
_STOP_SECONDS: Final = 30.0
"""That a shim may take to stop a sandbox beyond the time that the caller gives it."""
_ATTEMPTS: Final = 3
_PAUSE_SECONDS: Final = 0.1

log = logging.getLogger(__name__)


class Sandboxes:
    """`carina.sandboxes.SandboxController` over shims."""

    def __init__(
        self, config: Config, launcher: Launcher, outbox: Outbox, store: SandboxStore | None, group: asyncio.TaskGroup
    ) -> None:
        self._config, self._launcher, self._outbox = config, launcher, outbox
        self._store, self._group = store, group
        self._sandboxes: dict[tuple[str, str], Sandboxed] = {}

    def _background(self, sandbox: Sandboxed, what: str, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            with context.use(context.Call(namespace=sandbox.bundle.namespace)):
                try:
                    await work
                except CarinaError as error:
                    log.error("sandbox %s/%s: %s: %s", *sandbox.key, what, error)

        self._group.create_task(run(), name=f"{what} sandbox {'/'.join(sandbox.key)}")

    def find(self, id: str) -> Sandboxed | None:
        """One of the call's namespace."""
        return self._sandboxes.get((context.namespace(), id))

    async def _live(self, id: str) -> Sandboxed:
        sandbox = self.find(id)
        if sandbox is None:
            raise NotFound(f"sandbox {id}: not found")
        if sandbox.phase is Phase.CONNECTING:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.state_seconds):
                    await sandbox.settled.wait()
        return sandbox.live()

    async def create(
        self,
        id: str,
        *,
        sandbox: Sandbox | None = None,
        rootfs: Sequence[Mount] = (),
        options: TypedValue | None = None,
        netns_path: str = "",
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        namespace = context.namespace()
        context.validate_identifier(id, "sandbox id")
        bundle = Bundle(
            namespace=namespace,
            id=id,
            path=self._config.sandboxes / namespace / id,
            work=self._config.sandbox_work / namespace / id,
            mode=0o700,
        )
        made = Sandboxed(bundle, Phase.CREATING, number=secrets.randbits(62))
        if self._sandboxes.setdefault(made.key, made) is not made:
            raise AlreadyExists(f"sandbox {id}: already exists")
        request = wire.CreateSandboxRequest(
            sandbox_id=id,
            bundle_path=str(bundle.path),
            rootfs=[WireMount(type=m.type, source=m.source, target=m.target, options=[*m.options]) for m in rootfs],
            options=value_to_wire(options),
            netns_path=netns_path,
            annotations=dict(annotations or {}),
        )
        try:
            await self._create(made, sandbox or await self._record(id), request)
        except BaseException:
            await finish(self._undo(made))
            raise

    async def _record(self, id: str) -> Sandbox:
        if self._store is None:
            raise InvalidArgument(f"sandbox {id}: the request holds no record")
        with context.deadline(_METADATA_SECONDS):
            return await self._store.get(id)

    async def _create(self, made: Sandboxed, record: Sandbox, request: wire.CreateSandboxRequest) -> None:
        bundle, runtime = made.bundle, record.runtime
        if runtime is None or not runtime.name:
            raise InvalidArgument(f"sandbox {made.id} has no runtime")
        binary = await in_thread(find_shim, runtime.name, self._config.shim_directories)
        spec = record.spec.value if record.spec is not None else b""
        await in_thread(bundle.create, spec or b"{}")
        made.binary = binary
        await in_thread(bundle.remember_shim, binary)
        await in_thread(remember, bundle, Memory(number=made.number))
        made.stop_log = await shim_log.follow(bundle)
        options = runtime.options if runtime.options is not None and runtime.options.value else None
        bootstrap = await self._launcher.start(bundle, binary, options, alone=True)
        await in_thread(bundle.remember_bootstrap, bootstrap)
        made.shim = Shim(bootstrap, self._config, lambda _: self._lost(made))
        await made.shim.connect()
        seconds = self._config.create_seconds
        await made.call("CreateSandbox", request, wire.CreateSandboxResponse, seconds=seconds)
        made.created = True
        await in_thread(remember, bundle, Memory(number=made.number, created=True))
        made.enter(Phase.LIVE)
        await self._outbox.record(rpc.sandbox_created(*made.key), Subject(kind=Kind.OTHER))
        self._background(made, "wait for", self._await_end(made))

    async def _undo(self, made: Sandboxed) -> None:
        with context.use(context.Call(namespace=made.bundle.namespace)):
            made.ending = True
            if made.binary is not None:
                await end_shim(made, self._launcher)
            await self._forget(made)

    async def _forget(self, sandbox: Sandboxed) -> None:
        sandbox.enter(Phase.GONE)
        sandbox.stop_log()
        if sandbox.shim is not None:
            sandbox.shim.close()
        try:
            await in_thread(sandbox.bundle.remove)
        finally:
            if self._sandboxes.get(sandbox.key) is sandbox:
                del self._sandboxes[sandbox.key]

    async def start(self, id: str) -> Instance:
        if self.find(id) is None and self._store is not None:
            await self.create(id)  # `ctr sandboxes run` makes a record, and starts it at once.
        sandbox = await self._live(id)
        request = wire.StartSandboxRequest(sandbox_id=id)
        seconds = self._config.create_seconds
        found = await sandbox.call("StartSandbox", request, wire.StartSandboxResponse, seconds=seconds)
        await self._outbox.record(rpc.sandbox_started(*sandbox.key), Subject(kind=Kind.OTHER))
        assert sandbox.shim is not None
        bootstrap = sandbox.shim.bootstrap
        return Instance(
            pid=found.pid,
            created_at=found.created_at,
            address=f"{bootstrap.protocol}+{bootstrap.address}",
            version=bootstrap.version,
            spec=value_from_wire(found.spec),
        )

    async def platform(self, id: str) -> Platform:
        sandbox = await self._live(id)
        request = wire.PlatformRequest(sandbox_id=id)
        found = (await sandbox.call("Platform", request, wire.PlatformResponse)).platform
        if found is None:
            return Platform()
        return Platform(os=found.os, architecture=found.architecture, variant=found.variant)

    async def stop(self, id: str, *, seconds: int = 0) -> None:
        try:
            sandbox = await self._live(id)
        except NotFound:
            return
        request = wire.StopSandboxRequest(sandbox_id=id, timeout_secs=seconds)
        try:
            patience = max(seconds + _STOP_SECONDS, self._config.call_seconds)
            await sandbox.call("StopSandbox", request, wire.StopSandboxResponse, seconds=patience)
        except (NotFound, Unavailable):
            if sandbox.phase is Phase.LIVE and sandbox.shim is not None and sandbox.shim.connected:
                raise
            return
        # The answer and the end that it brings come by two calls: whoever asks next is to find it ended.
        await asyncio.wait([sandbox.ended], timeout=self._config.state_seconds)

    async def wait(self, id: str) -> End:
        sandbox = await self._live(id)
        return await asyncio.shield(sandbox.ended)

    async def status(self, id: str, *, verbose: bool = False) -> State:
        sandbox = await self._live(id)
        if sandbox.phase is Phase.DEAD:
            end = sandbox.last
            return State(state="SANDBOX_NOTREADY", exited_at=end.exited_at if end is not None else None)
        request = wire.SandboxStatusRequest(sandbox_id=id, verbose=verbose)
        found = await sandbox.call("SandboxStatus", request, wire.SandboxStatusResponse)
        assert sandbox.shim is not None
        bootstrap = sandbox.shim.bootstrap
        return State(
            pid=found.pid,
            state=found.state,
            info=dict(found.info),
            created_at=found.created_at,
            exited_at=found.exited_at,
            extra=value_from_wire(found.extra),
            address=f"{bootstrap.protocol}+{bootstrap.address}",
            version=bootstrap.version,
        )

    async def update(self, id: str, sandbox: Sandbox, fields: Sequence[str] = ()) -> None:
        raise Unimplemented(f"sandbox {id}: this controller can't follow changes of the record")

    async def metrics(self, id: str) -> Reading:
        sandbox = await self._live(id)
        request = wire.SandboxMetricsRequest(sandbox_id=id)
        found = (await sandbox.call("SandboxMetrics", request, wire.SandboxMetricsResponse)).metrics
        data = None if found is None else value_from_wire(found.data)
        if found is None or data is None:
            raise NotFound(f"sandbox {id}: its shim has no metrics")
        return Reading(timestamp=found.timestamp or datetime.now(UTC), data=data)

    async def shutdown(self, id: str) -> None:
        try:
            sandbox = await self._live(id)
        except NotFound:
            return
        sandbox.ending = True
        try:
            if sandbox.phase is Phase.LIVE:
                await self._shut_down(sandbox)
        except BaseException:
            sandbox.ending = False
            raise
        await finish(self._close(sandbox))

    async def _shut_down(self, sandbox: Sandboxed) -> None:
        request = wire.ShutdownSandboxRequest(sandbox_id=sandbox.id)
        seconds = max(_STOP_SECONDS, self._config.call_seconds)
        try:
            await sandbox.call("ShutdownSandbox", request, wire.ShutdownSandboxResponse, seconds=seconds)
        except (NotFound, Unavailable):
            # It may be gone before it answers.
            if sandbox.shim is not None and sandbox.shim.connected:
                raise

    async def _close(self, sandbox: Sandboxed) -> None:
        shim = sandbox.shim
        if shim is not None:
            if await disconnected(shim, _END_SECONDS):
                await remove_socket(shim.bootstrap.address)
            else:
                log.warning("sandbox %s/%s: its shim goes on after it was shut down", *sandbox.key)
            shim.close()
        await self._report(sandbox, sandbox.last or End(status=0, exited_at=datetime.now(UTC)))
        await self._forget(sandbox)

    async def _await_end(self, sandbox: Sandboxed) -> None:
        try:
            end = await sandbox.wait()
        except CarinaError as error:
            if sandbox.shim is not None and sandbox.shim.connected:
                sandbox.fail(error)
            return  # Otherwise the connection is lost, which is settled elsewhere.
        await self._report(sandbox, end)

    async def _report(self, sandbox: Sandboxed, end: End) -> None:
        """Let everybody know of the end, once."""
        if sandbox.phase is not Phase.GONE:
            try:
                await in_thread(remember, sandbox.bundle, Memory(number=sandbox.number, created=True, end=end))
            except CarinaError as error:  # Gone meanwhile, or no room: whoever waits is told all the same.
                log.warning("sandbox %s/%s: %s", *sandbox.key, error)
        # No process of a task has an id like this: it can't be an exec id.
        subject = Subject(
            kind=Kind.EXIT, namespace=sandbox.key[0], id=sandbox.id, exec_id="/sandbox", pid=sandbox.number
        )
        await self._outbox.record(rpc.sandbox_exited(*sandbox.key, end), subject)
        sandbox.end(end)

    def _lost(self, sandbox: Sandboxed) -> None:
        if not sandbox.ending and sandbox.phase is Phase.LIVE:
            sandbox.enter(Phase.CONNECTING)
            self._background(sandbox, "reconnect", self._connect(sandbox))

    async def _connect(self, sandbox: Sandboxed) -> None:
        """Reach the shim; where that fails for good, the sandbox has ended."""
        for attempt in range(_ATTEMPTS):
            try:
                await self._reach(sandbox)
                break
            except CarinaError as error:
                if attempt == _ATTEMPTS - 1 or isinstance(error, NotFound):
                    await self._died(sandbox, error)
                    return
            await asyncio.sleep(_PAUSE_SECONDS)
        sandbox.enter(Phase.LIVE)
        if not sandbox.ended.done():
            self._background(sandbox, "wait for", self._await_end(sandbox))

    async def _reach(self, sandbox: Sandboxed) -> None:
        bootstrap = await in_thread(sandbox.bundle.bootstrap)
        if bootstrap is None:
            raise NotFound(f"sandbox {sandbox.id}: its creation was interrupted")
        shim = Shim(bootstrap, self._config, lambda _: self._lost(sandbox))
        await shim.connect()
        sandbox.shim = shim
        if not sandbox.created:
            raise NotFound(f"sandbox {sandbox.id}: its creation was interrupted")
        request = wire.SandboxStatusRequest(sandbox_id=sandbox.id)
        try:
            await shim.call_sandbox(
                "SandboxStatus", request, wire.SandboxStatusResponse, seconds=self._config.start_seconds
            )
        except CarinaError as error:
            if not shim.connected or isinstance(error, NotFound):
                raise
            log.warning("sandbox %s/%s: its shim does not answer: %s", *sandbox.key, error)

    async def _died(self, sandbox: Sandboxed, cause: CarinaError) -> None:
        log.warning("sandbox %s/%s: its shim is dead (%s)", *sandbox.key, cause)
        bootstrap = None
        with contextlib.suppress(CarinaError):
            bootstrap = await in_thread(sandbox.bundle.bootstrap)
        await end_shim(sandbox, self._launcher, address=bootstrap.address if bootstrap is not None else "")
        if not sandbox.created:
            await self._forget(sandbox)
            return
        sandbox.shim = None
        await self._report(sandbox, sandbox.last or End(status=UNKNOWN, exited_at=datetime.now(UTC)))
        sandbox.enter(Phase.DEAD)

    async def reconcile(self) -> None:
        """After a start: find the sandboxes on disk; connecting them goes on in the background."""
        for bundle in await in_thread(bundles, self._config.sandboxes, self._config.sandbox_work):
            try:
                context.validate_identifier(bundle.namespace, "namespace")
                context.validate_identifier(bundle.id, "sandbox id")
            except InvalidArgument as error:
                log.warning("%s is left alone: %s", bundle.path, error)
                continue
            sandbox = Sandboxed(bundle, Phase.CONNECTING)
            self._sandboxes[sandbox.key] = sandbox
            self._background(sandbox, "reconcile", self._reconcile(sandbox))

    async def _reconcile(self, sandbox: Sandboxed) -> None:
        sandbox.binary = await in_thread(sandbox.bundle.shim)
        try:
            memory = await in_thread(recall, sandbox.bundle)
        except CarinaError as error:
            log.warning("sandbox %s/%s: %s", *sandbox.key, error)
            memory = Memory(number=secrets.randbits(62))
        sandbox.number, sandbox.created = memory.number, memory.created
        if memory.end is not None:
            sandbox.end(memory.end)
        sandbox.stop_log = await shim_log.follow(sandbox.bundle)
        await self._connect(sandbox)

    def give_up_waits(self) -> None:
        """End the Wait calls of our clients, as `Registry.give_up_waits` does."""
        for sandbox in self._sandboxes.values():
            sandbox.fail(Unavailable(f"sandbox {sandbox.id}: taskd is stopping"))

    async def close(self) -> None:
        """Let go of everything; the shims go on."""
        for sandbox in list(self._sandboxes.values()):
            sandbox.stop_log()
            if sandbox.shim is not None:
                sandbox.ending = True
                sandbox.shim.close()
                await sandbox.shim.closed()
