"""Serves any differ over gRPC."""

from carina.api.containerd.services.diff.v1 import ApplyRequest, ApplyResponse, DiffBase, DiffRequest, DiffResponse
from carina.diff import Differ
from carina.diff.client import descriptor_from_wire, descriptor_to_wire, mounts_from_wire
from carina.rpc.codec import encode


class DiffService(DiffBase):
    def __init__(self, differ: Differ) -> None:
        self._differ = differ

    async def apply(self, message: ApplyRequest) -> ApplyResponse:
        # Only where there are any: most differs have no stream processors, and need not know of them.
        payloads = {id: encode(payload) for id, payload in message.payloads.items()}
        more = {"payloads": payloads} if payloads else {}
        applied = await self._differ.apply(
            descriptor_from_wire(message.diff),
            mounts_from_wire(message.mounts),
            sync_fs=message.sync_fs,
            **more,
        )
        return ApplyResponse(applied=descriptor_to_wire(applied))

    async def diff(self, message: DiffRequest) -> DiffResponse:
        made = await self._differ.diff(
            mounts_from_wire(message.left),
            mounts_from_wire(message.right),
            media_type=message.media_type,
            ref=message.ref,
            labels=dict(message.labels),
            source_date_epoch=message.source_date_epoch,
        )
        return DiffResponse(diff=descriptor_to_wire(made))
