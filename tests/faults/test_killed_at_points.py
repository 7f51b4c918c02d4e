"""A service killed at every fault point: what was acknowledged is there, what was not is whole or absent."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from carina.errors import CarinaError
from support.content import directory
from support.forked import Nursery, Service
from support.ledger import Ledger
from support.points import points
from support.workload import clients, differences, found, integrity, turn

SERVICES = ("contentd", "snapshotd", "metadatad")
TURNS = 6


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


def start(nursery: Nursery, name: str, base: Path, fault: str = "") -> Service:
    more = ("--snapshotter", "native") if name == "snapshotd" else ()
    arguments = ("--root", str(base / "root"), "--state", str(base), *more)
    return nursery.start(name, *arguments, log=base / f"{name}.log", fault=fault)


async def work(base: Path, ledger: Ledger, doomed: Service) -> None:
    """Turn after turn until the service is dead."""
    async with clients(base) as own:
        with contextlib.suppress(CarinaError):
            for number in range(TURNS):
                await turn(own, ledger, str(number), str(number - 1) if number else "")
                if not doomed.alive:
                    return


async def check(base: Path, ledger: Ledger) -> None:
    async with clients(base) as own:
        for _ in range(2):
            # What was cut off is settled, and nothing live goes with the collections; a second look finds the same.
            assert await differences(own, base / "root") == []
            there = await found(own, ledger.allowed())
            wrong = {key: there[key] for key, allowed in ledger.allowed().items() if there[key] not in allowed}
            assert wrong == {}
            ledger.settle(there)


def owner(point: str) -> str:
    return point.partition(".")[0]


@pytest.mark.parametrize("point", [point for point in points() if owner(point) in SERVICES])
def test_killed_at(nursery: Nursery, point: str) -> None:
    """The service dies there; the next one has all that was acknowledged, and records and stores agree."""
    ledger = Ledger()
    with directory() as base:
        running = {name: start(nursery, name, base, point * (name == owner(point))) for name in SERVICES}
        for service in running.values():
            assert service.ready(), service.log.read_text()
        doomed = running[owner(point)]
        asyncio.run(work(base, ledger, doomed))
        assert doomed.wait() == -signal.SIGKILL, f"{point} is never reached"

        running[owner(point)] = start(nursery, owner(point), base)
        assert running[owner(point)].ready(), running[owner(point)].log.read_text()
        asyncio.run(check(base, ledger))
        for service in running.values():
            service.kill()
        assert integrity(base / "root") == {}
