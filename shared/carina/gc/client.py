"""The collector over a socket, and what explains it."""

from collections.abc import Sequence

from carina.api.carina.gc.v1 import Chain as WireChain
from carina.api.carina.gc.v1 import (
    GcStub,
    PlanImagesRequest,
    PlanRequest,
    RunRequest,
    StatisticsRequest,
    UsageRequest,
    WhyRequest,
)
from carina.api.carina.gc.v1 import Removed as WireRemoved
from carina.errors import Internal
from carina.gc import (
    CHAINS,
    Chain,
    Collection,
    Doomed,
    Explanation,
    Hop,
    ImageUsage,
    Release,
    Removed,
    Root,
    Statistics,
)
from carina.rpc.client import Channel


class RemoteCollector:
    """`Collector` of the service at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._stub = GcStub(channel)

    async def run(self, *, sync: bool = False, full: bool = False) -> Collection:
        answer = await self._stub.run(RunRequest(sync=sync, full=full))
        return Collection(
            seconds=answer.seconds,
            lock_seconds=answer.lock_seconds,
            removed=_removed(answer.removed),
            candidates=answer.candidates,
            missed=answer.missed,
        )

    async def statistics(self) -> Statistics:
        answer = await self._stub.statistics(StatisticsRequest())
        if answer.since is None:
            raise Internal("the collector's statistics have no beginning")
        return Statistics(
            since=answer.since,
            collections=answer.collections,
            failures=answer.failures,
            seconds=answer.seconds,
            lock_seconds=answer.lock_seconds,
            longest_lock_seconds=answer.longest_lock_seconds,
            collected_at=answer.collected_at,
            removed=_removed(answer.removed),
            candidates=answer.candidates,
            next_candidate=answer.next_candidate,
            remaining=_removed(answer.remaining),
            checks=answer.checks,
            check_seconds=answer.check_seconds,
            missed=answer.missed,
            checked_at=answer.checked_at,
        )


class RemoteExplainer:
    """`Explainer` of the service at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._stub = GcStub(channel)

    async def plan(self, *, if_removed: str = "") -> list[Doomed]:
        return [
            Doomed(namespace=d.namespace, type=d.type, id=d.id, bytes=d.bytes)
            async for part in self._stub.plan(PlanRequest(if_removed=if_removed))
            for d in part.doomed
        ]

    async def plan_images(self) -> list[Release]:
        return [
            Release(image=r.image, bytes=r.bytes, content=r.content, snapshots=r.snapshots)
            async for part in self._stub.plan_images(PlanImagesRequest())
            for r in part.releases
        ]

    async def why(self, type: str, id: str, *, limit: int = CHAINS) -> Explanation:
        answer = await self._stub.why(WhyRequest(type=type, id=id, limit=limit))
        return Explanation(chains=tuple(_chain(wire) for wire in answer.chains), more=answer.more, since=answer.since)

    async def usage(self) -> list[ImageUsage]:
        return [
            ImageUsage(
                image=u.image,
                content=u.content,
                unique=u.unique,
                shared=u.shared,
                snapshots=u.snapshots,
                snapshot_bytes=u.snapshot_bytes,
                unmeasured=u.unmeasured,
            )
            async for part in self._stub.usage(UsageRequest())
            for u in part.images
        ]


def _removed(wire: Sequence[WireRemoved]) -> tuple[Removed, ...]:
    return tuple(Removed(type=r.type, objects=r.objects, bytes=r.bytes) for r in wire)


def _chain(wire: WireChain) -> Chain:
    root = wire.root
    return Chain(
        root=Root(kind="", type="", id="")
        if root is None
        else Root(kind=root.kind, type=root.type, id=root.id, by=root.by, until=root.until),
        hops=tuple(Hop(type=hop.type, id=hop.id, by=hop.by) for hop in wire.hops),
    )
