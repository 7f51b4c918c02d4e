"""Metrics for Prometheus: `GET /v1/metrics` over http, as containerd has it. Imported only where it is wanted."""

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final

from aiohttp import web
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from carina import context
from carina.aio.threads import in_thread
from carina.config import socket_path
from carina.errors import InvalidArgument
from carina.meter import Kind
from carina.rpc.metrics import Process
from carina.rpc.sockets import Bound, bind
from gatewayd.config import loopback

PATH: Final = "/v1/metrics"
SCRAPE_SECONDS: Final = 4.0
"""How long services may take altogether; Prometheus itself waits ten seconds by default."""
_TYPES: Final = {Kind.COUNTER: "counter", Kind.GAUGE: "gauge", Kind.HISTOGRAM: "histogram"}
_FOREIGN: Final = "container_"
"""What is about containers has containerd's labels and no others."""

Collect = Callable[[], Awaitable[Sequence[Process]]]

log = logging.getLogger(__name__)


class _Found(Collector):
    """What was gathered, as the library wants it: one family of each name, with the service as a label."""

    def __init__(self, processes: Iterable[Process]) -> None:
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        metrics: dict[str, Metric] = {}
        for process in self._processes:
            for family in process.families:
                metric = metrics.get(family.name)
                if metric is None:
                    name = family.name.removesuffix("_total") if family.kind is Kind.COUNTER else family.name
                    metric = metrics[family.name] = Metric(name, family.help, _TYPES[family.kind])
                own = {} if family.name.startswith(_FOREIGN) else {"service": process.service}
                for sample in family.samples:
                    metric.add_sample(family.name + sample.suffix, {**own, **dict(sample.labels)}, sample.value)
        yield from metrics.values()


def rendered(processes: Iterable[Process]) -> bytes:
    """Prometheus' text format."""
    return generate_latest(_Found(processes))


@contextlib.asynccontextmanager
async def serve(addresses: Sequence[str], collect: Collect, *, gid: int | None) -> AsyncIterator[None]:
    """Serve at the addresses for the block.

    Raises:
        InvalidArgument: one of them can't be listened at.
    """

    async def answer(request: web.Request) -> web.Response:
        with context.use(context.Call()), context.deadline(SCRAPE_SECONDS):
            found = await collect()
        return web.Response(body=await in_thread(rendered, found), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.router.add_get(PATH, answer)
    runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    bound: list[Bound] = []
    try:
        for address in addresses:
            await _listen(runner, address, bound, gid=gid)
            log.info("metrics are served at %s", address)
        yield
    finally:
        await runner.cleanup()
        for one in bound:
            await in_thread(one.unlink)


async def _listen(runner: web.AppRunner, address: str, bound: list[Bound], *, gid: int | None) -> None:
    if address.startswith(("unix://", "/")):
        bound.append(await in_thread(bind, socket_path(address), mode=0o660, gid=gid))
        await web.SockSite(runner, bound[-1].sock).start()
        return
    host, port = loopback(address)
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InvalidArgument(f"metrics can't be served at {address}: {reason.lower()}") from error
