"""Snapshotters over a socket: ours, containerd's, and any proxy plugin."""

from collections.abc import AsyncIterator, Mapping, Sequence

from carina.api.containerd.services.snapshots.v1 import (
    CleanupRequest,
    CommitSnapshotRequest,
    ListSnapshotsRequest,
    MountsRequest,
    PrepareSnapshotRequest,
    RemoveSnapshotRequest,
    SnapshotsStub,
    StatSnapshotRequest,
    UpdateSnapshotRequest,
    UsageRequest,
    ViewSnapshotRequest,
)
from carina.api.containerd.services.snapshots.v1 import Info as WireInfo
from carina.api.containerd.services.snapshots.v1 import Kind as WireKind
from carina.api.containerd.types import Mount as WireMount
from carina.api.google.protobuf import FieldMask
from carina.context import no_deadline
from carina.errors import Internal
from carina.mount import Mount
from carina.rpc.client import Channel
from carina.snapshots import Info, Kind, Usage


def info_to_wire(info: Info) -> WireInfo:
    return WireInfo(
        name=info.name,
        parent=info.parent,
        kind=WireKind(info.kind.value),
        created_at=info.created_at,
        updated_at=info.updated_at,
        labels=dict(info.labels),
    )


def info_from_wire(wire: WireInfo | None) -> Info:
    """Raises Internal: the peer sent no snapshot, or one of no known kind."""
    if wire is None:
        raise Internal("the snapshotter answered without a snapshot")
    try:
        kind = Kind(int(wire.kind))
    except ValueError as error:
        raise Internal(f"snapshot {wire.name}: unknown kind {int(wire.kind)}") from error
    return Info(
        name=wire.name,
        kind=kind,
        parent=wire.parent,
        created_at=wire.created_at,
        updated_at=wire.updated_at,
        labels=dict(wire.labels),
    )


def mounts_to_wire(mounts: Sequence[Mount]) -> list[WireMount]:
    return [WireMount(type=m.type, source=m.source, target=m.target, options=list(m.options)) for m in mounts]


def mounts_from_wire(wire: Sequence[WireMount]) -> list[Mount]:
    return [Mount(type=m.type, source=m.source, target=m.target, options=tuple(m.options)) for m in wire]


class RemoteSnapshotter:
    """`carina.snapshots.Snapshotter` over `channel`; `name` is for services that have several of them.

    The channel stays the caller's. Commit, remove and cleanup last as long as their work: they carry no deadline.
    """

    def __init__(self, channel: Channel, name: str = "") -> None:
        self._stub = SnapshotsStub(channel)
        self._name = name

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        answer = await self._stub.prepare(
            PrepareSnapshotRequest(snapshotter=self._name, key=key, parent=parent, labels=dict(labels or {}))
        )
        return mounts_from_wire(answer.mounts)

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        answer = await self._stub.view(
            ViewSnapshotRequest(snapshotter=self._name, key=key, parent=parent, labels=dict(labels or {}))
        )
        return mounts_from_wire(answer.mounts)

    async def mounts(self, key: str) -> list[Mount]:
        answer = await self._stub.mounts(MountsRequest(snapshotter=self._name, key=key))
        return mounts_from_wire(answer.mounts)

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        with no_deadline():
            await self._stub.commit(
                CommitSnapshotRequest(
                    snapshotter=self._name, name=name, key=key, labels=dict(labels or {}), parent=parent
                )
            )

    async def remove(self, key: str) -> None:
        with no_deadline():
            await self._stub.remove(RemoveSnapshotRequest(snapshotter=self._name, key=key))

    async def stat(self, key: str) -> Info:
        answer = await self._stub.stat(StatSnapshotRequest(snapshotter=self._name, key=key))
        return info_from_wire(answer.info)

    async def update(self, info: Info, fields: Sequence[str] = ()) -> Info:
        mask = FieldMask(paths=list(fields)) if fields else None
        answer = await self._stub.update(
            UpdateSnapshotRequest(snapshotter=self._name, info=info_to_wire(info), update_mask=mask)
        )
        return info_from_wire(answer.info)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        async for answer in self._stub.list(ListSnapshotsRequest(snapshotter=self._name, filters=list(filters))):
            for wire in answer.info:
                yield info_from_wire(wire)

    async def usage(self, key: str) -> Usage:
        answer = await self._stub.usage(UsageRequest(snapshotter=self._name, key=key))
        return Usage(size=answer.size, inodes=answer.inodes)

    async def cleanup(self) -> None:
        with no_deadline():
            await self._stub.cleanup(CleanupRequest(snapshotter=self._name))

    async def close(self) -> None:
        """Nothing is held open: the channel is the caller's."""
