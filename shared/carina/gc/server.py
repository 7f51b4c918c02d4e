"""Serves any collector over gRPC."""

from carina.api.carina.gc.v1 import GcBase, RunRequest, RunResponse
from carina.api.carina.gc.v1 import Removed as WireRemoved
from carina.gc import Collector


class GCService(GcBase):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    async def run(self, message: RunRequest) -> RunResponse:
        done = await self._collector.run(sync=message.sync)
        return RunResponse(
            seconds=done.seconds,
            lock_seconds=done.lock_seconds,
            removed=[WireRemoved(type=r.type, objects=r.objects, bytes=r.bytes) for r in done.removed],
        )
