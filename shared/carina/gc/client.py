"""The collector over a socket."""

from carina.api.carina.gc.v1 import GcStub, RunRequest
from carina.gc import Collection, Removed
from carina.rpc.client import Channel


class RemoteCollector:
    """`Collector` of the service at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._stub = GcStub(channel)

    async def run(self, *, sync: bool = False) -> Collection:
        answer = await self._stub.run(RunRequest(sync=sync))
        return Collection(
            seconds=answer.seconds,
            lock_seconds=answer.lock_seconds,
            removed=tuple(Removed(type=r.type, objects=r.objects, bytes=r.bytes) for r in answer.removed),
        )
