"""A service killed at every fault point: what was acknowledged is there, what was not is whole or absent."""

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from carina.errors import CarinaError
from support import scratch
from support.content import directory
from support.forked import Nursery, Service
from support.ledger import Ledger
from support.points import points
from support.started import STORES, started
from support.workload import clients, differences, found, integrity, turn

TURNS = 6
TESTS = Path(__file__).resolve().parents[1]


def owner(point: str) -> str:
    return point.partition(".")[0]


def points_of(*owners: str) -> list[str]:
    return [point for point in points() if owner(point) in owners and ".swap." not in point]


async def work(state: Path, ledger: Ledger, doomed: Service) -> None:
    """Turn after turn until the service is dead."""
    async with clients(state) as own:
        with contextlib.suppress(CarinaError):
            for number in range(TURNS):
                await turn(own, ledger, str(number), str(number - 1) if number else "")
                if not doomed.alive:
                    return


async def check(root: Path, state: Path, ledger: Ledger) -> None:
    async with clients(state) as own:
        for _ in range(2):
            # What was cut off is settled, and nothing live goes with the collections; a second look finds the same.
            assert await differences(own, root) == []
            there = await found(own, ledger.allowed())
            wrong = {key: there[key] for key, allowed in ledger.allowed().items() if there[key] not in allowed}
            assert wrong == {}
            ledger.settle(there)


def test_every_point_is_tried() -> None:
    """A new point belongs to a service whose points a test here goes through."""
    assert {owner(point) for point in points()} == {*STORES, "sqlite", "taskd", "imaged", "gatewayd"}


@pytest.mark.parametrize("point", points_of(*STORES))
def test_killed_at(nursery: Nursery, point: str) -> None:
    """The service dies there; the next one has all that was acknowledged, and records and stores agree."""
    ledger, name = Ledger(), owner(point)
    with directory(scratch.parent()) as base:
        root = base / "root"
        with started(nursery, root, base, *STORES, faults={name: point}) as services:
            asyncio.run(work(base, ledger, services.running[name]))
            assert services.running[name].wait() == -signal.SIGKILL, f"{point} is never reached"

            assert services.start(name).ready()
            asyncio.run(check(root, base, ledger))
        assert integrity(root) == {}


@pytest.mark.parametrize("point", points_of("sqlite"))
@pytest.mark.parametrize("name", ["metadatad", "snapshotd"])
def test_killed_at_first_start(nursery: Nursery, name: str, point: str) -> None:
    """A service that dies while it makes its database starts with it the next time."""
    with directory(scratch.parent()) as base, started(nursery, base / "root", base) as services:
        doomed = services.start(name, fault=f"{point}:2" if name == "metadatad" else point)
        assert (doomed.ready(), doomed.wait()) == (False, -signal.SIGKILL)

        assert services.start(name).ready()
        services.kill()
        assert integrity(base / "root") == {}


HOLDER = """
import signal, time
from pathlib import Path
from support.forked import Nursery
with Nursery() as nursery:
    service = nursery.start("contentd", "--root", "{base}/root", "--state", "{base}", log=Path("{base}/log"))
    assert service.ready()
    print(service.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_service_survives_a_test_that_is_killed(number: signal.Signals) -> None:
    """The test process, or the whole group of processes that a terminal interrupts, ends: so do the services."""
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"}
    with directory() as base:
        command = [sys.executable, "-c", HOLDER.format(base=base)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, env=environment, text=True, start_new_session=True
        ) as holder:
            assert holder.stdout is not None
            service = os.pidfd_open(int(holder.stdout.readline()))
            os.killpg(holder.pid, number)
        try:
            assert select.select([service], [], [], 30.0)[0] == [service]
        finally:
            os.close(service)
