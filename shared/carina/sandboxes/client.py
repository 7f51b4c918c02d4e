"""The sandbox store, and sandbox controllers, over a socket."""

from collections.abc import Mapping, Sequence

from carina.api.containerd.services.sandbox import v1 as wire
from carina.api.containerd.services.sandbox.v1 import (
    StoreCreateRequest,
    StoreDeleteRequest,
    StoreGetRequest,
    StoreListRequest,
    StoreStub,
    StoreUpdateRequest,
)
from carina.api.containerd.types import Mount as WireMount
from carina.api.containerd.types import Sandbox as WireSandbox
from carina.api.containerd.types import SandboxRuntime
from carina.context import no_deadline
from carina.errors import Internal, InvalidArgument
from carina.mount import Mount
from carina.platforms import Platform
from carina.rpc.any import value_from_wire, value_to_wire, values_from_wire, values_to_wire
from carina.rpc.client import Channel
from carina.sandboxes import End, Instance, Reading, Sandbox, State
from carina.typed import Runtime, TypedValue


def from_wire(wire: WireSandbox | None) -> Sandbox:
    if wire is None:
        raise InvalidArgument("the message holds no sandbox")
    runtime = wire.runtime
    return Sandbox(
        id=wire.sandbox_id,
        runtime=Runtime(name=runtime.name, options=value_from_wire(runtime.options)) if runtime else None,
        spec=value_from_wire(wire.spec),
        labels=dict(wire.labels),
        created_at=wire.created_at,
        updated_at=wire.updated_at,
        extensions=values_from_wire(wire.extensions),
        sandboxer=wire.sandboxer,
    )


def to_wire(sandbox: Sandbox) -> WireSandbox:
    runtime = sandbox.runtime
    return WireSandbox(
        sandbox_id=sandbox.id,
        runtime=SandboxRuntime(name=runtime.name, options=value_to_wire(runtime.options)) if runtime else None,
        spec=value_to_wire(sandbox.spec),
        labels=dict(sandbox.labels),
        created_at=sandbox.created_at,
        updated_at=sandbox.updated_at,
        extensions=values_to_wire(sandbox.extensions),
        sandboxer=sandbox.sandboxer,
    )


class RemoteSandboxStore:
    """`SandboxStore` of the service at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._stub = StoreStub(channel)

    async def get(self, id: str) -> Sandbox:
        return from_wire((await self._stub.get(StoreGetRequest(sandbox_id=id))).sandbox)

    async def list(self, filters: Sequence[str] = ()) -> Sequence[Sandbox]:
        return [from_wire(wire) for wire in (await self._stub.list(StoreListRequest(filters=[*filters]))).list]

    async def create(self, sandbox: Sandbox) -> Sandbox:
        return from_wire((await self._stub.create(StoreCreateRequest(sandbox=to_wire(sandbox)))).sandbox)

    async def update(self, sandbox: Sandbox, fields: Sequence[str] = ()) -> Sandbox:
        request = StoreUpdateRequest(sandbox=to_wire(sandbox), fields=list(fields))
        return from_wire((await self._stub.update(request)).sandbox)

    async def delete(self, id: str) -> None:
        await self._stub.delete(StoreDeleteRequest(sandbox_id=id))


class RemoteSandboxController:
    """`SandboxController` of the other end of a channel, by the name under which that knows it.

    What lasts as long as its work carries no deadline.
    """

    def __init__(self, channel: Channel, name: str) -> None:
        self._stub = wire.ControllerStub(channel)
        self._name = name

    async def create(
        self,
        id: str,
        *,
        rootfs: Sequence[Mount] = (),
        options: TypedValue | None = None,
        netns_path: str = "",
        annotations: Mapping[str, str] | None = None,
        sandbox: Sandbox | None = None,
    ) -> None:
        request = wire.ControllerCreateRequest(
            sandbox_id=id,
            rootfs=[WireMount(type=m.type, source=m.source, target=m.target, options=[*m.options]) for m in rootfs],
            options=value_to_wire(options),
            netns_path=netns_path,
            annotations=dict(annotations or {}),
            sandbox=None if sandbox is None else to_wire(sandbox),
            sandboxer=self._name,
        )
        with no_deadline():
            await self._stub.create(request)

    async def start(self, id: str) -> Instance:
        with no_deadline():
            made = await self._stub.start(wire.ControllerStartRequest(sandbox_id=id, sandboxer=self._name))
        return Instance(
            pid=made.pid,
            created_at=made.created_at,
            labels=dict(made.labels),
            address=made.address,
            version=made.version,
            spec=value_from_wire(made.spec),
        )

    async def platform(self, id: str) -> Platform:
        request = wire.ControllerPlatformRequest(sandbox_id=id, sandboxer=self._name)
        found = (await self._stub.platform(request)).platform
        if found is None:
            raise Internal(f"the controller of sandbox {id} names no platform")
        return Platform(os=found.os, architecture=found.architecture, variant=found.variant)

    async def stop(self, id: str, *, seconds: int = 0) -> None:
        request = wire.ControllerStopRequest(sandbox_id=id, timeout_secs=seconds, sandboxer=self._name)
        with no_deadline():
            await self._stub.stop(request)

    async def wait(self, id: str) -> End:
        with no_deadline():
            ended = await self._stub.wait(wire.ControllerWaitRequest(sandbox_id=id, sandboxer=self._name))
        return End(status=ended.exit_status, exited_at=ended.exited_at)

    async def status(self, id: str, *, verbose: bool = False) -> State:
        request = wire.ControllerStatusRequest(sandbox_id=id, verbose=verbose, sandboxer=self._name)
        found = await self._stub.status(request)
        return State(
            state=found.state,
            pid=found.pid,
            info=dict(found.info),
            created_at=found.created_at,
            exited_at=found.exited_at,
            extra=value_from_wire(found.extra),
            address=found.address,
            version=found.version,
        )

    async def shutdown(self, id: str) -> None:
        with no_deadline():
            await self._stub.shutdown(wire.ControllerShutdownRequest(sandbox_id=id, sandboxer=self._name))

    async def metrics(self, id: str) -> Reading:
        request = wire.ControllerMetricsRequest(sandbox_id=id, sandboxer=self._name)
        found = (await self._stub.metrics(request)).metrics
        data = None if found is None else value_from_wire(found.data)
        if found is None or found.timestamp is None or data is None:
            raise Internal(f"the controller of sandbox {id} measured nothing")
        return Reading(timestamp=found.timestamp, data=data)

    async def update(self, id: str, sandbox: Sandbox, fields: Sequence[str] = ()) -> None:
        request = wire.ControllerUpdateRequest(
            sandbox_id=id, sandboxer=self._name, sandbox=to_wire(sandbox), fields=[*fields]
        )
        await self._stub.update(request)
