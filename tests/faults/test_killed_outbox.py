"""taskd killed at every fault point of its outbox: what a shim was told is kept is in the log of events, once."""

import asyncio
import contextlib
import itertools
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from carina.errors import CarinaError
from carina.events import Envelope
from carina.typed import TypedValue
from support import scratch
from support.content import directory
from support.forked import Nursery, Service
from support.ledger import Ledger, present
from support.points import points
from support.started import started
from support.workload import NAMESPACE, SECONDS, clients, found
from taskd.rpc import forward_event

pytestmark = pytest.mark.root
POINTS = [point for point in points() if point.startswith("taskd.")]


async def shim(state: Path, ledger: Ledger, taskd: Service) -> None:
    """Publish events, each once, until taskd is dead."""
    limit = time.monotonic() + SECONDS
    with contextlib.suppress(CarinaError, OSError):
        for number in itertools.count():
            topic = f"/shim/{number}"
            event = TypedValue(type_url="shim", value=b"")
            envelope = Envelope(timestamp=datetime.now(UTC), namespace=NAMESPACE, topic=topic, event=event)
            call = forward_event(str(state / "carina.sock.ttrpc"), envelope)
            await ledger.step({("event", topic): present(1)}, call)
            if not taskd.alive or time.monotonic() > limit:
                return


async def wrong(state: Path, ledger: Ledger) -> dict[object, object]:
    """What is not as it was acknowledged, once everything has been forwarded."""
    limit = time.monotonic() + SECONDS
    async with clients(state) as own:
        while True:
            there = await found(own, ledger.allowed())
            result: dict[object, object] = {
                key: there[key] for key, allowed in ledger.allowed().items() if there[key] not in allowed
            }
            if not result or time.monotonic() > limit:
                return result
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_forwarding(nursery: Nursery, point: str) -> None:
    """The next taskd forwards what the first one had acknowledged, and not what was forwarded already."""
    ledger = Ledger()
    with directory(scratch.parent()) as base:
        faults = {"taskd": f"{point}:3"}
        with started(nursery, base / "root", base, "metadatad", "taskd", faults=faults) as services:
            asyncio.run(shim(base, ledger, services.running["taskd"]))
            assert services.running["taskd"].wait() == -signal.SIGKILL, f"{point} is never reached"
            assert services.start("taskd").ready()

            assert asyncio.run(wrong(base, ledger)) == {}
    assert ledger.acknowledged() > 0
