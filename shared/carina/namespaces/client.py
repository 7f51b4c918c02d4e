"""The namespace store over a socket."""

from collections.abc import Sequence

from carina.api.containerd.services.namespaces.v1 import (
    CreateNamespaceRequest,
    DeleteNamespaceRequest,
    GetNamespaceRequest,
    ListNamespacesRequest,
    NamespacesStub,
    UpdateNamespaceRequest,
)
from carina.api.containerd.services.namespaces.v1 import Namespace as WireNamespace
from carina.api.google.protobuf import FieldMask
from carina.errors import InvalidArgument
from carina.namespaces import Namespace
from carina.rpc.client import Channel


def from_wire(wire: WireNamespace | None) -> Namespace:
    if wire is None:
        raise InvalidArgument("the message names no namespace")
    return Namespace(name=wire.name, labels=dict(wire.labels))


def to_wire(namespace: Namespace) -> WireNamespace:
    return WireNamespace(name=namespace.name, labels=dict(namespace.labels))


class RemoteNamespaceStore:
    """`NamespaceStore` of the service at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._stub = NamespacesStub(channel)

    async def get(self, name: str) -> Namespace:
        return from_wire((await self._stub.get(GetNamespaceRequest(name=name))).namespace)

    async def list(self) -> Sequence[Namespace]:
        answer = await self._stub.list(ListNamespacesRequest())
        return [from_wire(wire) for wire in answer.namespaces]

    async def create(self, namespace: Namespace) -> Namespace:
        answer = await self._stub.create(CreateNamespaceRequest(namespace=to_wire(namespace)))
        return from_wire(answer.namespace)

    async def update(self, namespace: Namespace, fields: Sequence[str] = ()) -> Namespace:
        mask = FieldMask(paths=list(fields)) if fields else None
        answer = await self._stub.update(UpdateNamespaceRequest(namespace=to_wire(namespace), update_mask=mask))
        wire = answer.namespace
        # containerd's answer is empty.
        return from_wire(wire) if wire is not None and wire.name else await self.get(namespace.name)

    async def delete(self, name: str) -> None:
        await self._stub.delete(DeleteNamespaceRequest(name=name))
