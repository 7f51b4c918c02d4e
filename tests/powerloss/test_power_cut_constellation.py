"""The power goes while clients pull, run, import and write: the constellation starts with all that it acknowledged.

More cuts, and others: CARINA_POWER_CUTS and CARINA_POWER_SEED, as in `test_power_cut.py`.
"""

import asyncio
import os
from pathlib import Path

import pytest
import uvloop

from carina.client import Client
from support.ledger import Ledger
from support.powerloss.disk import Cut, RecordedDisk, missing
from support.registry import Registry
from support.storm import audit
from support.storm.accounts import Accounts
from support.storm.peers import Ours
from support.storm.storm import images_in, workers_of
from support.storm.work import Worker, closing

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing() not in ("", "root"), reason=f"a recorded disk needs {missing()}"),
]
CUTS = int(os.environ.get("CARINA_POWER_CUTS", "3"))
SEED = int(os.environ.get("CARINA_POWER_SEED", "1"))
SECONDS = 5.0
SIZE = 320 << 20


async def work(workers: list[Worker]) -> None:
    async with closing(workers), asyncio.TaskGroup() as group:
        for worker in workers:
            group.create_task(worker.work(), name=worker.name)
        await asyncio.sleep(SECONDS)
        for worker in workers:
            worker.stop.set()


async def look(peer: Ours, accounts: Accounts, cut: Cut) -> list[str]:
    """What is not as it was acknowledged before the power went."""
    found = Accounts(ledger=accounts.ledger.at(cut.position))
    async with Client(f"unix://{peer.socket}") as client:
        if await audit.recovered(peer, found, client):
            await audit.losses(client, found)
            await audit.disagreements(client, found, repair=False)
    return [*found.lost, *found.stuck, *found.leaked]


def test_a_constellation_has_what_it_acknowledged(tmp_path: Path) -> None:
    """Images, blobs, labels and leases are there, whole, after each cut; records and stores agree."""
    accounts, tried = Accounts(), 0
    with RecordedDisk(SIZE) as disk, Registry(tmp_path) as registry:
        accounts.ledger = Ledger(disk.mark)
        with Ours(disk=disk.mountpoint) as peer:
            namespaces = peer.namespaces
            workers = workers_of(peer, accounts, images_in(registry), seed=SEED)
            uvloop.run(work(workers))
            end = disk.mark()
        for cut in disk.cuts(seed=SEED, count=CUTS, before=end):
            with cut.mounted() as path, Ours(disk=path) as peer:
                peer.namespaces = namespaces
                assert uvloop.run(look(peer, accounts, cut)) == [], (cut, peer.log.read_text()[-2000:])
                tried += 1
    assert tried == CUTS
    assert accounts.acknowledged > 0
