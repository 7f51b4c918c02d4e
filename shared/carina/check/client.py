"""The check over a socket."""

from collections.abc import AsyncGenerator

from carina.api.carina.check.v1 import CheckStub, RunRequest
from carina.check import Finding, Options, Summary, Unchecked
from carina.rpc.client import Channel


class RemoteChecker:
    """`Checker` of the service at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._stub = CheckStub(channel)

    async def check(self, options: Options) -> AsyncGenerator[Finding | Unchecked | Summary, None]:
        request = RunRequest(repair=options.repair, no_hash=not options.hash, remove_orphans=options.remove_orphans)
        async for answer in self._stub.run(request):
            for found in answer.findings:
                yield Finding(
                    kind=found.kind,
                    namespace=found.namespace,
                    type=found.type,
                    id=found.id,
                    detail=found.detail,
                    done=found.done,
                    settled=found.settled,
                )
            for part in answer.unchecked:
                yield Unchecked(name=part.name, reason=part.reason)
            if answer.summary is not None:
                done = answer.summary
                yield Summary(
                    content=done.content,
                    snapshots=done.snapshots,
                    records=done.records,
                    hashed=done.hashed,
                    hashed_bytes=done.hashed_bytes,
                )
