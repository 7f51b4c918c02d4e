"""What is answered in another way to who may see some namespaces only: lists and events are cut to these."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from grpclib.const import Handler

from carina.api.containerd.services.events.v1 import EventsBase, EventsStub, SubscribeRequest
from carina.api.containerd.services.namespaces.v1 import (
    GetNamespaceRequest,
    GetNamespaceResponse,
    ListNamespacesRequest,
    ListNamespacesResponse,
    NamespacesBase,
    NamespacesStub,
)
from carina.api.containerd.services.transfer.v1 import TransferBase, TransferRequest, TransferStub
from carina.api.containerd.types import Envelope
from carina.api.containerd.types.transfer import OciRegistry
from carina.api.google.protobuf import Any as WireAny
from carina.api.google.protobuf import Empty
from carina.errors import PermissionDenied
from carina.rpc.codec import decode, encode
from gatewayd.upstream import Upstream

_TYPES: Final = "containerd.types.transfer"
REGISTRY: Final = f"{_TYPES}.OCIRegistry"
HARMLESS: Final = {f"{_TYPES}.{kind}" for kind in ("ImageStore", "ImageImportStream", "ImageExportStream")}
"""What a transfer may come from or go to that names neither a host nor a path."""


def _only(handlers: dict[str, Handler], *methods: str) -> dict[str, Handler]:
    """Those methods of a service that are answered here."""
    return {path: handler for path, handler in handlers.items() if path.rpartition("/")[2] in methods}


class TenantNamespaces(NamespacesBase):
    def __init__(self, metadata: Upstream, namespaces: frozenset[str]) -> None:
        self._metadata = metadata
        self._namespaces = namespaces

    async def get(self, message: GetNamespaceRequest) -> GetNamespaceResponse:
        if message.name not in self._namespaces:
            raise PermissionDenied(f"this connection is for namespace {', '.join(sorted(self._namespaces))} only")
        return await NamespacesStub(self._metadata.route()).get(message)

    async def list(self, message: ListNamespacesRequest) -> ListNamespacesResponse:
        answer = await NamespacesStub(self._metadata.route()).list(message)
        mine = [namespace for namespace in answer.namespaces if namespace.name in self._namespaces]
        return ListNamespacesResponse(namespaces=mine)

    def __mapping__(self) -> dict[str, Handler]:
        return _only(super().__mapping__(), "Get", "List")


class TenantEvents(EventsBase):
    def __init__(self, metadata: Upstream, namespaces: frozenset[str]) -> None:
        self._metadata = metadata
        self._namespaces = namespaces

    async def subscribe(self, message: SubscribeRequest) -> AsyncIterator[Envelope]:
        """The filters are put behind one of ours, which spares work; what decides is each event's namespace."""
        filters = [
            f"namespace=={name},{stated}" if stated else f"namespace=={name}"
            for name in sorted(self._namespaces)
            for stated in (message.filters or [""])
        ]
        stub = EventsStub(self._metadata.route())
        async for envelope in stub.subscribe(SubscribeRequest(filters=filters)):
            if envelope.namespace in self._namespaces:
                yield envelope

    def __mapping__(self) -> dict[str, Handler]:
        return _only(super().__mapping__(), "Subscribe")


class TenantTransfer(TransferBase):
    """Transfers but for those that would read a directory of the host as root."""

    def __init__(self, images: Upstream) -> None:
        self._images = images

    async def transfer(self, message: TransferRequest) -> Empty:
        sides = [_checked(side) for side in (message.source, message.destination)]
        return await TransferStub(self._images.route()).transfer(
            TransferRequest(source=sides[0], destination=sides[1], options=message.options)
        )


def _checked(side: WireAny | None) -> WireAny | None:
    """One side of a transfer. Whatever is not known to be harmless is read as a registry, and passed on as it was read.

    Raises:
        PermissionDenied: its settings are in a directory of the host.
        InvalidArgument: it can't be read.
    """
    if side is None or side.type_url.rpartition("/")[2] in HARMLESS:
        return side
    registry = decode(OciRegistry, side.value)
    if registry.resolver is not None and registry.resolver.host_dir:
        raise PermissionDenied("a directory of registry settings on this host can't be named here")
    return WireAny(type_url=REGISTRY, value=encode(registry))


def services(metadata: Upstream, images: Upstream, namespaces: frozenset[str]) -> Sequence[Any]:
    return [TenantNamespaces(metadata, namespaces), TenantEvents(metadata, namespaces), TenantTransfer(images)]
