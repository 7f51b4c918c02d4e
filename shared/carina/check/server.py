"""Serves any check over gRPC."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from carina.api.carina.check.v1 import CheckBase, RunRequest, RunResponse
from carina.api.carina.check.v1 import Finding as WireFinding
from carina.api.carina.check.v1 import Summary as WireSummary
from carina.api.carina.check.v1 import Unchecked as WireUnchecked
from carina.check import Checker, Finding, Options, Summary, Unchecked


class CheckService(CheckBase):
    def __init__(self, checker: Checker) -> None:
        self._checker = checker

    async def run(self, message: RunRequest) -> AsyncIterator[RunResponse]:
        options = Options(repair=message.repair, hash=not message.no_hash, remove_orphans=message.remove_orphans)
        async with aclosing(self._checker.check(options)) as results:
            async for result in results:
                yield _to_wire(result)


def _to_wire(result: Finding | Unchecked | Summary) -> RunResponse:
    if isinstance(result, Unchecked):
        return RunResponse(unchecked=[WireUnchecked(name=result.name, reason=result.reason)])
    if isinstance(result, Summary):
        return RunResponse(
            summary=WireSummary(
                content=result.content,
                snapshots=result.snapshots,
                records=result.records,
                hashed=result.hashed,
                hashed_bytes=result.hashed_bytes,
            )
        )
    finding = WireFinding(
        kind=result.kind,
        namespace=result.namespace,
        type=result.type,
        id=result.id,
        detail=result.detail,
        done=result.done,
        settled=result.settled,
    )
    return RunResponse(findings=[finding])
