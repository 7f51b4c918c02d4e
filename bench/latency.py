"""Calls to a busy gateway: many at a time beside containerd, and while each service in turn is killed."""

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import uvloop

from bench.peers import Carina, Containerd, command_of
from carina import context
from carina.api.containerd.services.containers.v1 import ContainersStub, ListContainersRequest
from carina.api.containerd.services.version.v1 import VersionStub
from carina.api.google.protobuf import Empty
from carina.rpc.client import Channel, connect
from support.paced import forget, loaded, reaching

if TYPE_CHECKING:
    from bench.__main__ import Report

T = TypeVar("T")
AT_ONCE: Final = (1, 16, 256)
CALLS: Final = 4000
"""For each figure, after a tenth of that to warm up."""
ROUNDS: Final = 3
RATE: Final = 1000.0
SECONDS: Final = float(os.environ.get("BENCH_RESTART_SECONDS", "3"))
"""Load before and after a kill."""
BACK_SECONDS: Final = 30.0
Call = Callable[[Channel], Awaitable[object]]
METHODS: Final[Mapping[str, Call]] = {
    "Version": lambda channel: VersionStub(channel).version(Empty()),
    "Containers.List": lambda channel: ContainersStub(channel).list(ListContainersRequest()),
}


async def _many(socket: Path, call: Call, *, at_once: int, calls: int) -> tuple[list[float], float]:
    """Seconds of each call, and of all."""
    times: list[float] = []
    channel = connect(f"unix://{socket}")
    left = calls + calls // 10

    async def one_after_the_other() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            begun = time.perf_counter()
            await call(channel)
            times.append(time.perf_counter() - begun)

    try:
        with context.use(context.Call(namespace="bench")):
            begun = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(one_after_the_other(), name="caller")
    finally:
        channel.close()
    return times[calls // 10 :], time.perf_counter() - begun


def _run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def concurrency(report: "Report", carina: Carina, containerd: Containerd) -> None:
    """Median and 99th percentile of a call, and calls in a second, by how many are made at a time.

    The client is the same on both sides: ours, since Google's in Python takes several times what any server does.
    """
    for what, call in METHODS.items():
        for at_once in AT_ONCE:
            figures: dict[str, list[tuple[float, float, float]]] = {}
            for _ in range(ROUNDS):
                for peer in (carina, containerd):
                    times, seconds = _run(_many(peer.socket, call, at_once=at_once, calls=CALLS))
                    found = statistics.quantiles(times, n=100)
                    figures.setdefault(peer.name, []).append((found[49], found[98], len(times) * 1.1 / seconds))
            ours, theirs = (
                [statistics.median(values) for values in zip(*figures[name], strict=True)]
                for name in ("carina", "containerd")
            )
            report.add(f"{what}, {at_once} at a time, median", "us", ours[0] * 1e6, theirs[0] * 1e6)
            report.add(f"{what}, {at_once} at a time, 99th percentile", "us", ours[1] * 1e6, theirs[1] * 1e6)
            report.add(f"{what}, {at_once} at a time, calls in a second", "1/s", ours[2], theirs[2])


def restarts(report: "Report", carina: Carina) -> None:
    """The longest time without an answer of each service when it is killed, at a thousand calls a second."""
    for name, call in reaching(carina.constellation).items():
        for number in (signal.SIGTERM, signal.SIGKILL):
            gap, failed, made = asyncio.run(_restarted(carina, name, call, number))
            how = "killed" if number is signal.SIGKILL else "stopped"
            report.add(f"{name} {how} and started again: longest silence", "ms", gap * 1000)
            report.add(f"  calls of {made} that failed as unavailable", "", failed)
    forget(carina.constellation)


async def _restarted(
    carina: Carina, name: str, call: tuple[str, bytes], number: signal.Signals
) -> tuple[float, int, int]:
    """Longest silence in seconds, failed calls, and calls made."""
    async with loaded(carina.socket, {name: call}, rate=RATE, namespace=carina.namespace) as loads:
        load = loads[name]
        await load.answered_for(SECONDS, within=BACK_SECONDS)
        pid = _pid(carina, name)
        moment = time.monotonic()
        os.kill(pid, number)
        await asyncio.sleep(0.5)
        await load.answered_for(SECONDS, within=BACK_SECONDS)
    made = load.since(moment)
    return load.gap(moment), sum(not outcome.answered for outcome in made), len(made)


def _pid(carina: Carina, name: str) -> int:
    return next(pid for pid in carina.pids() if command_of(pid) == name[:15])
