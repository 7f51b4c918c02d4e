"""carina.metrics.v1: what this process counts, and what those behind it do; served by every service as Health is."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from carina import context, meter
from carina.api.carina.metrics.v1 import (
    CollectRequest,
    CollectResponse,
    MetricsBase,
    MetricsStub,
)
from carina.api.carina.metrics.v1 import Family as WireFamily
from carina.api.carina.metrics.v1 import Kind as WireKind
from carina.api.carina.metrics.v1 import Process as WireProcess
from carina.api.carina.metrics.v1 import Sample as WireSample
from carina.errors import CarinaError
from carina.meter import Family, Kind, Sample
from carina.rpc.client import Channel

HOP_SECONDS: Final = 0.5
"""What a process keeps of the time that it is given: those behind it have to be done earlier."""
SHORTEST: Final = 0.1
_KINDS: Final = {Kind.COUNTER: WireKind.COUNTER, Kind.GAUGE: WireKind.GAUGE, Kind.HISTOGRAM: WireKind.HISTOGRAM}
_READ: Final = {wire: kind for kind, wire in _KINDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What one process said."""

    service: str
    families: Sequence[Family] = ()
    error: str = ""
    """Why there are no families."""


Source = Callable[[], Awaitable[Iterable[Process]]]


class Metrics(MetricsBase):
    """The service `name` of this process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.sources: list[Source] = []
        """What else is told: of processes behind this one, or of this one if that has to be waited for."""

    async def collected(self) -> list[Process]:
        """Everything, by process. A source that fails, or is not done in the time given, is left out."""
        remaining = context.current().remaining
        limit = 2.0 if remaining is None else max(SHORTEST, remaining - HOP_SECONDS)
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(_within(source, limit), name="metrics") for source in self.sources]
        found = [process for one in asked for process in one.result()]
        own = meter.families()
        for process in [process for process in found if process.service == self._name]:
            own += process.families
            found.remove(process)
        return [Process(service=self._name, families=own), *found]

    async def collect(self, message: CollectRequest) -> CollectResponse:
        return CollectResponse(processes=[_to_wire(process) for process in await self.collected()])


async def _within(source: Source, seconds: float) -> list[Process]:
    try:
        # Calls that are made for it end a little earlier, so that it can say of whom there is no answer.
        with context.deadline(seconds):
            async with asyncio.timeout(seconds + HOP_SECONDS / 2):
                return list(await source())
    except (CarinaError, TimeoutError):
        return []


async def gather(name: str, channel: Channel) -> list[Process]:
    """What the process `name` at the other end says, or why it does not; it does not fail."""
    try:
        answer = await MetricsStub(channel).collect(CollectRequest())
    except CarinaError as error:
        return [Process(service=name, error=str(error) or type(error).__name__)]
    return [_from_wire(process) for process in answer.processes]


def _to_wire(process: Process) -> WireProcess:
    families = [
        WireFamily(
            name=family.name,
            help=family.help,
            kind=_KINDS[family.kind],
            samples=[
                WireSample(
                    suffix=sample.suffix, labels=[text for pair in sample.labels for text in pair], value=sample.value
                )
                for sample in family.samples
            ],
        )
        for family in process.families
    ]
    return WireProcess(service=process.service, error=process.error, families=families)


def _from_wire(process: WireProcess) -> Process:
    families = [
        Family(
            family.name,
            family.help,
            _READ[family.kind],
            [
                Sample(sample.suffix, tuple(zip(sample.labels[::2], sample.labels[1::2], strict=False)), sample.value)
                for sample in family.samples
            ],
        )
        for family in process.families
        if family.kind in _READ
    ]
    return Process(service=process.service, error=process.error, families=families)
