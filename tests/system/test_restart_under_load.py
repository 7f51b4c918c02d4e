"""Any service killed while calls come in: those that need it fail as unavailable until it is back, and no others."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from support.constellation import Constellation
from support.paced import forget, loaded, reaching

RATE = 100
BACK_SECONDS = 30.0
BEHIND = {
    "gatewayd": {"gatewayd", "metadatad", "imaged", "taskd", "contentd", "snapshotd-native"},
    "metadatad": {"metadatad", "contentd", "snapshotd-native"},
    "imaged": {"imaged"},
    "taskd": {"taskd"},
    "contentd": {"contentd"},
    "snapshotd-native": {"snapshotd-native"},
}
"""Killed service -> the calls that may fail meanwhile."""


def pid_of(constellation: Constellation, name: str) -> int:
    """Of the service; one that was ended just now may take a moment to be back."""
    limit = time.monotonic() + BACK_SECONDS
    while True:
        lines = constellation.carina("status", *constellation.paths, check=False).output.splitlines()
        for line in lines:
            if line.startswith(name) and line.split()[2] != "-":
                return int(line.split()[2])
        assert time.monotonic() < limit, lines
        time.sleep(0.05)


@pytest.fixture
def calls(constellation: Constellation) -> Iterator[dict[str, tuple[str, bytes]]]:
    yield reaching(constellation)
    forget(constellation)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("killed", BEHIND)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_service_is_started_again_under_load(
    constellation: Constellation, calls: dict[str, tuple[str, bytes]], killed: str, number: signal.Signals
) -> None:
    """Calls that don't need the service all go through; the others fail as UNAVAILABLE alone, until it is back."""
    pid = pid_of(constellation, killed)
    async with loaded(constellation.socket, calls, rate=RATE, namespace=constellation.namespace) as loads:
        for load in loads.values():
            await load.answered_for(0.5, within=BACK_SECONDS)
        moment = time.monotonic()
        os.kill(pid, number)
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < moment + BACK_SECONDS
            await asyncio.sleep(0.02)
        for load in loads.values():
            await load.answered_for(1.0, within=BACK_SECONDS)
    codes = {name: {outcome.code for outcome in load.since(moment)} for name, load in loads.items()}

    for name, found in codes.items():
        bad = {code for code in found if code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)}
        assert bad == set(), (name, found)
        if name not in BEHIND[killed]:
            assert grpc.StatusCode.UNAVAILABLE not in found, name
    assert pid_of(constellation, killed) != pid
