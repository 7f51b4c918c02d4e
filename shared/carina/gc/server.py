"""Serves any collector, and any explainer of it, over gRPC."""

from collections.abc import AsyncIterator, Sequence
from typing import Final, TypeVar

from carina.api.carina.gc.v1 import Chain as WireChain
from carina.api.carina.gc.v1 import Doomed as WireDoomed
from carina.api.carina.gc.v1 import (
    GcBase,
    PlanImagesRequest,
    PlanImagesResponse,
    PlanRequest,
    PlanResponse,
    RunRequest,
    RunResponse,
    StatisticsRequest,
    StatisticsResponse,
    UsageRequest,
    UsageResponse,
    WhyRequest,
    WhyResponse,
)
from carina.api.carina.gc.v1 import Hop as WireHop
from carina.api.carina.gc.v1 import ImageUsage as WireImageUsage
from carina.api.carina.gc.v1 import Release as WireRelease
from carina.api.carina.gc.v1 import Removed as WireRemoved
from carina.api.carina.gc.v1 import Root as WireRoot
from carina.gc import CHAINS, Chain, Collector, Explainer, Removed

T = TypeVar("T")

BLOCK: Final = 500
"""Objects in one message of a stream."""


class GCService(GcBase):
    def __init__(self, collector: Collector, explainer: Explainer) -> None:
        self._collector = collector
        self._explainer = explainer

    async def run(self, message: RunRequest) -> RunResponse:
        done = await self._collector.run(sync=message.sync, full=message.full)
        return RunResponse(
            seconds=done.seconds,
            lock_seconds=done.lock_seconds,
            removed=_removed(done.removed),
            candidates=done.candidates,
            missed=done.missed,
        )

    async def statistics(self, message: StatisticsRequest) -> StatisticsResponse:
        found = await self._collector.statistics()
        return StatisticsResponse(
            since=found.since,
            collections=found.collections,
            failures=found.failures,
            seconds=found.seconds,
            lock_seconds=found.lock_seconds,
            longest_lock_seconds=found.longest_lock_seconds,
            collected_at=found.collected_at,
            removed=_removed(found.removed),
            candidates=found.candidates,
            next_candidate=found.next_candidate,
            remaining=_removed(found.remaining),
            checks=found.checks,
            check_seconds=found.check_seconds,
            missed=found.missed,
            checked_at=found.checked_at,
        )

    async def plan(self, message: PlanRequest) -> AsyncIterator[PlanResponse]:
        for block in _blocks(await self._explainer.plan(if_removed=message.if_removed)):
            doomed = [WireDoomed(namespace=d.namespace, type=d.type, id=d.id, bytes=d.bytes) for d in block]
            yield PlanResponse(doomed=doomed)

    async def plan_images(self, message: PlanImagesRequest) -> AsyncIterator[PlanImagesResponse]:
        for block in _blocks(await self._explainer.plan_images()):
            releases = [
                WireRelease(image=r.image, bytes=r.bytes, content=r.content, snapshots=r.snapshots) for r in block
            ]
            yield PlanImagesResponse(releases=releases)

    async def why(self, message: WhyRequest) -> WhyResponse:
        found = await self._explainer.why(message.type, message.id, limit=message.limit or CHAINS)
        return WhyResponse(chains=[_chain(chain) for chain in found.chains], more=found.more, since=found.since)

    async def usage(self, message: UsageRequest) -> AsyncIterator[UsageResponse]:
        for block in _blocks(await self._explainer.usage()):
            images = [
                WireImageUsage(
                    image=u.image,
                    content=u.content,
                    unique=u.unique,
                    shared=u.shared,
                    snapshots=u.snapshots,
                    snapshot_bytes=u.snapshot_bytes,
                    unmeasured=u.unmeasured,
                )
                for u in block
            ]
            yield UsageResponse(images=images)


def _blocks(values: Sequence[T]) -> list[Sequence[T]]:
    return [values[start : start + BLOCK] for start in range(0, len(values), BLOCK)]


def _removed(removed: Sequence[Removed]) -> list[WireRemoved]:
    return [WireRemoved(type=r.type, objects=r.objects, bytes=r.bytes) for r in removed]


def _chain(chain: Chain) -> WireChain:
    root = chain.root
    return WireChain(
        root=WireRoot(kind=root.kind, type=root.type, id=root.id, by=root.by, until=root.until),
        hops=[WireHop(type=hop.type, id=hop.id, by=hop.by) for hop in chain.hops],
    )
