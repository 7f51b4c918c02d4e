"""The metrics of the whole constellation: each service behind the gateway is asked for its own."""

import asyncio
from collections.abc import Mapping

from carina.meter import Family, Kind, Sample
from carina.rpc.metrics import Process, gather
from gatewayd.upstream import Upstream

NAME = "gatewayd"


class Gathering:
    """What `carina.rpc.metrics.Metrics.sources` gets in gatewayd. A service that is known to be silent is not asked."""

    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self._upstreams = upstreams
        self._started: dict[str, float] = {}
        self._restarts: dict[str, int] = {}

    async def behind(self) -> list[Process]:
        answers = await asyncio.gather(*(_ask(name, upstream) for name, upstream in self._upstreams.items()))
        found = [process for processes in answers for process in processes]
        up = [Sample("", (("name", NAME),), 1.0)]
        for process in found:
            up.append(Sample("", (("name", process.service),), float(not process.error)))
            self._note(process)
        restarts = [Sample("", (("name", name),), count) for name, count in self._restarts.items()]
        families = [
            Family("carina_up", "Whether the service told its metrics in time.", Kind.GAUGE, up),
            Family("carina_restarts_total", "Starts of the service that the gateway saw.", Kind.COUNTER, restarts),
        ]
        return [*found, Process(service=NAME, families=families)]

    def _note(self, process: Process) -> None:
        """Another moment of its start is another process."""
        for family in process.families:
            if family.name == "process_start_time_seconds":
                before = self._started.get(process.service)
                self._started[process.service] = began = family.samples[0].value
                again = before is not None and before != began
                self._restarts[process.service] = self._restarts.get(process.service, 0) + again


async def _ask(name: str, upstream: Upstream) -> list[Process]:
    if upstream.silence:
        return [Process(service=name, error=upstream.silence)]
    return await gather(name, upstream.channel)
