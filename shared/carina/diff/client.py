"""The differ over a socket. Applying and making layers last as long as their work: no deadline is added here."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from carina.api.containerd.services.diff.v1 import ApplyRequest, DiffRequest, DiffStub
from carina.api.containerd.types import Descriptor as WireDescriptor
from carina.api.containerd.types import Mount as WireMount
from carina.api.google.protobuf import Any as WireAny
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import InvalidArgument
from carina.mount import Mount
from carina.rpc.client import Channel
from carina.rpc.codec import decode


def descriptor_from_wire(wire: WireDescriptor | None) -> Descriptor:
    if wire is None:
        raise InvalidArgument("the message holds no descriptor")
    return Descriptor(
        media_type=wire.media_type, digest=Digest(wire.digest), size=wire.size, annotations=dict(wire.annotations)
    )


def descriptor_to_wire(descriptor: Descriptor) -> WireDescriptor:
    return WireDescriptor(
        media_type=descriptor.media_type,
        digest=str(descriptor.digest),
        size=descriptor.size,
        annotations=dict(descriptor.annotations),
    )


def mounts_from_wire(wires: Iterable[WireMount]) -> list[Mount]:
    return [Mount(type=w.type, source=w.source, target=w.target, options=tuple(w.options)) for w in wires]


def mounts_to_wire(mounts: Iterable[Mount]) -> list[WireMount]:
    return [WireMount(type=m.type, source=m.source, target=m.target, options=[*m.options]) for m in mounts]


class RemoteDiffer:
    """`Differ` of the service at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._stub = DiffStub(channel)

    async def apply(
        self,
        layer: Descriptor,
        mounts: Sequence[Mount],
        *,
        sync_fs: bool = True,
        payloads: Mapping[str, bytes] | None = None,
    ) -> Descriptor:
        request = ApplyRequest(
            diff=descriptor_to_wire(layer),
            mounts=mounts_to_wire(mounts),
            sync_fs=sync_fs,
            payloads={id: decode(WireAny, data) for id, data in (payloads or {}).items()},
        )
        return descriptor_from_wire((await self._stub.apply(request)).applied)

    async def diff(
        self,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        *,
        media_type: str = "",
        ref: str = "",
        labels: Mapping[str, str] | None = None,
        source_date_epoch: datetime | None = None,
    ) -> Descriptor:
        request = DiffRequest(
            left=mounts_to_wire(lower),
            right=mounts_to_wire(upper),
            media_type=media_type,
            ref=ref,
            labels=dict(labels or {}),
            source_date_epoch=source_date_epoch,
        )
        return descriptor_from_wire((await self._stub.diff(request)).diff)
