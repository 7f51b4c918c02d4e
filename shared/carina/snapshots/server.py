"""Serves any snapshotters over gRPC, as containerd serves its own."""

from collections.abc import AsyncIterator, Callable
from typing import Final

from carina.api.containerd.services.snapshots.v1 import (
    CleanupRequest,
    CommitSnapshotRequest,
    ListSnapshotsRequest,
    ListSnapshotsResponse,
    MountsRequest,
    MountsResponse,
    PrepareSnapshotRequest,
    PrepareSnapshotResponse,
    RemoveSnapshotRequest,
    SnapshotsBase,
    StatSnapshotRequest,
    StatSnapshotResponse,
    UpdateSnapshotRequest,
    UpdateSnapshotResponse,
    UsageRequest,
    UsageResponse,
    ViewSnapshotRequest,
    ViewSnapshotResponse,
)
from carina.api.google.protobuf import Empty
from carina.errors import InvalidArgument
from carina.snapshots import Snapshotter
from carina.snapshots.client import info_from_wire, info_to_wire, mounts_to_wire

BLOCK: Final = 100
"""Snapshots in one message of a list."""

Resolve = Callable[[str], Snapshotter]


def only(snapshotter: Snapshotter) -> Resolve:
    """Resolve every name to the one snapshotter there is.

    Whoever calls a proxy plugin names it as its own configuration does, which the plugin can't know.
    """
    return lambda name: snapshotter


class SnapshotsService(SnapshotsBase):
    """`resolve` gives the snapshotter that a request names (InvalidArgument: there is none of that name)."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve

    async def prepare(self, message: PrepareSnapshotRequest) -> PrepareSnapshotResponse:
        snapshotter = self._resolve(message.snapshotter)
        mounts = await snapshotter.prepare(message.key, message.parent, message.labels)
        return PrepareSnapshotResponse(mounts=mounts_to_wire(mounts))

    async def view(self, message: ViewSnapshotRequest) -> ViewSnapshotResponse:
        snapshotter = self._resolve(message.snapshotter)
        mounts = await snapshotter.view(message.key, message.parent, message.labels)
        return ViewSnapshotResponse(mounts=mounts_to_wire(mounts))

    async def mounts(self, message: MountsRequest) -> MountsResponse:
        return MountsResponse(mounts=mounts_to_wire(await self._resolve(message.snapshotter).mounts(message.key)))

    async def commit(self, message: CommitSnapshotRequest) -> Empty:
        snapshotter = self._resolve(message.snapshotter)
        await snapshotter.commit(message.name, message.key, message.labels, message.parent)
        return Empty()

    async def remove(self, message: RemoveSnapshotRequest) -> Empty:
        await self._resolve(message.snapshotter).remove(message.key)
        return Empty()

    async def stat(self, message: StatSnapshotRequest) -> StatSnapshotResponse:
        return StatSnapshotResponse(info=info_to_wire(await self._resolve(message.snapshotter).stat(message.key)))

    async def update(self, message: UpdateSnapshotRequest) -> UpdateSnapshotResponse:
        snapshotter = self._resolve(message.snapshotter)
        if message.info is None:
            raise InvalidArgument("the request names no snapshot to update")
        # A client need not say what can't be changed: the kind is only there to make the message whole.
        if not message.info.kind:
            message.info.kind = info_to_wire(await snapshotter.stat(message.info.name)).kind
        fields = message.update_mask.paths if message.update_mask else ()
        return UpdateSnapshotResponse(info=info_to_wire(await snapshotter.update(info_from_wire(message.info), fields)))

    async def list(self, message: ListSnapshotsRequest) -> AsyncIterator[ListSnapshotsResponse]:
        block = []
        async for info in self._resolve(message.snapshotter).walk(message.filters):
            block.append(info_to_wire(info))
            if len(block) == BLOCK:
                yield ListSnapshotsResponse(info=block)
                block = []
        if block:
            yield ListSnapshotsResponse(info=block)

    async def usage(self, message: UsageRequest) -> UsageResponse:
        usage = await self._resolve(message.snapshotter).usage(message.key)
        return UsageResponse(size=usage.size, inodes=usage.inodes)

    async def cleanup(self, message: CleanupRequest) -> Empty:
        await self._resolve(message.snapshotter).cleanup()
        return Empty()
