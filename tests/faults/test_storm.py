"""A short storm in every run of the suite; `make faults` has longer ones, of all kinds."""

from pathlib import Path

import pytest
import uvloop

from support.registry import Registry
from support.storm.nemesis import KILLS, kill_everything, kill_service, stop_service
from support.storm.peers import Ours, Theirs
from support.storm.storm import Storm

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]
SEED = 1
SECONDS = 20.0


def test_nothing_is_lost_stuck_or_leaked(tmp_path: Path) -> None:
    """Through kills and stops of services, everything that clients were told is so, and nothing else is left."""
    kinds = (kill_service, kill_everything, stop_service)
    with Registry(tmp_path) as registry, Ours() as peer:
        report = uvloop.run(Storm(peer, registry, seed=SEED, kinds=kinds).rounds(seconds=SECONDS, at_least=3))
        said = [(one.kind, one.lost, one.stuck, one.leaked) for one in report.rounds]
        assert [one[1:] for one in said] == [([], [], [])] * len(said), (said, peer.log.read_text()[-3000:])
    assert sum(one.acknowledged for one in report.rounds) > 0


def test_the_same_clients_work_with_containerd(tmp_path: Path) -> None:
    """The clients of a storm expect nothing of us that a real containerd does not give."""
    with Registry(tmp_path) as registry, Theirs() as peer:
        report = uvloop.run(Storm(peer, registry, seed=SEED, kinds=KILLS[1:2]).rounds(seconds=1.0))
    assert [one.lost for one in report.rounds] == [[]]
    assert sum(one.acknowledged for one in report.rounds) > 0
