"""The sandbox store over a socket."""

from collections.abc import Sequence

from carina.api.containerd.services.sandbox.v1 import (
    ControllerStatusRequest,
    ControllerStub,
    StoreCreateRequest,
    StoreDeleteRequest,
    StoreGetRequest,
    StoreListRequest,
    StoreStub,
    StoreUpdateRequest,
)
from carina.api.containerd.types import Sandbox as WireSandbox
from carina.api.containerd.types import SandboxRuntime
from carina.errors import InvalidArgument
from carina.rpc.any import value_from_wire, value_to_wire, values_from_wire, values_to_wire
from carina.rpc.client import Channel
from carina.sandboxes import Sandbox
from carina.typed import Runtime


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
    """The controller that the other end of a channel knows by a name. Other calls are passed on as they come."""

    def __init__(self, channel: Channel, name: str) -> None:
        self._stub = ControllerStub(channel)
        self._name = name

    async def status(self, id: str) -> str:
        """A sandbox's state, in a word of the controller's choice. Raises NotFound."""
        return (await self._stub.status(ControllerStatusRequest(sandbox_id=id, sandboxer=self._name))).state
