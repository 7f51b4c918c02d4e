"""The power goes at any moment: what contentd, snapshotd and metadatad acknowledged is there, the rest whole or absent.

A run takes its cuts from one record of a workload. More of them, or others, are a matter of the environment:

    CARINA_POWER_CUTS=500 CARINA_POWER_SEED=7 pytest tests/powerloss/test_power_cut.py
"""

import asyncio
import os
from pathlib import Path

import pytest

from support.content import directory
from support.forked import Nursery
from support.ledger import Ledger
from support.powerloss.disk import Cut, RecordedDisk, missing
from support.started import STORES, started
from support.workload import clients, differences, found, integrity, turn

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(600),
    pytest.mark.skipif(missing() not in ("", "root"), reason=f"a recorded disk needs {missing()}"),
]
CUTS = int(os.environ.get("CARINA_POWER_CUTS", "12"))
SEED = int(os.environ.get("CARINA_POWER_SEED", "1"))
SIZE = 96 << 20
WORKERS, TURNS = 3, 3


async def work(state: Path, ledger: Ledger) -> None:
    async def many(worker: int) -> None:
        for number in range(TURNS):
            previous = f"{worker}-{number - 1}" if number else ""
            await turn(own, ledger, f"{worker}-{number}", previous)

    async with clients(state) as own, asyncio.TaskGroup() as tasks:
        for worker in range(WORKERS):
            tasks.create_task(many(worker), name=f"worker {worker}")


def record(nursery: Nursery, disk: RecordedDisk, *, careless: bool = False) -> Ledger:
    """A workload on the disk."""
    ledger = Ledger(disk.mark)
    with directory() as state, started(nursery, disk.mountpoint / "root", state, *STORES, careless=careless):
        asyncio.run(work(state, ledger))
    return ledger


async def wrong(state: Path, ledger: Ledger, cut: Cut) -> list[str]:
    """What is not as it was acknowledged."""
    async with clients(state) as own:
        allowed = ledger.allowed(cut.position)
        there = await found(own, allowed)
        return [f"{key} is {there[key]!r:.80}" for key, values in allowed.items() if there[key] not in values]


async def settled(state: Path, root: Path) -> list[str]:
    """What the services don't agree on, once they have settled what was cut off and collected what is garbage."""
    async with clients(state) as own:
        return await differences(own, root)


def survive(nursery: Nursery, cut: Cut, ledger: Ledger) -> list[str]:
    with cut.mounted() as path:
        root = path / "root"
        with directory() as state, started(nursery, root, state, *STORES):
            # In this order: nothing live may go with the collections.
            result = asyncio.run(settled(state, root)) + asyncio.run(wrong(state, ledger, cut))
        return result + [f"{name}: {text}" for name, text in integrity(root).items()]


def test_everything_acknowledged_survives(nursery: Nursery) -> None:
    """After each cut the services start, have what they acknowledged, and agree with one another."""
    acknowledged = 0
    with RecordedDisk(SIZE) as disk:
        ledger = record(nursery, disk)
        for cut in disk.cuts(seed=SEED, count=CUTS):
            assert survive(nursery, cut, ledger) == [], cut
            acknowledged += ledger.acknowledged(cut.position)
    assert acknowledged > 0


def test_services_that_do_not_sync_are_found_out(nursery: Nursery) -> None:
    """The same services without fsync(2) lose what they acknowledged, and that is seen."""
    with RecordedDisk(SIZE) as disk:
        ledger = record(nursery, disk, careless=True)
        for cut in disk.cuts(seed=1, count=10):
            with cut.mounted() as path, directory() as state, started(nursery, path / "root", state, *STORES):
                lost = asyncio.run(wrong(state, ledger, cut))
            if lost:
                break
    assert lost != []
