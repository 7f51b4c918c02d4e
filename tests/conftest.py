"""What holds for every test: both event loops, no blocking call on a loop, nothing left behind."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import HealthCheck, settings

# How long an example takes says more of the machine than of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    """Every async test runs on the stock loop and on uvloop; a whole constellation uses its own loops anyway."""
    if "system" in item.keywords:
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def no_blocking(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """A blocking call on a running loop inside our own code fails the test."""
    if "system" in request.keywords:
        yield None
        return
    with blockbuster_ctx(["carina", "contentd", "snapshotd", "metadatad", "imaged", "taskd", "gatewayd"]) as guard:
        yield guard


def _mounts(below: Path) -> list[str]:
    mounts = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [mount for mount in mounts if mount.startswith(f"{below}/")]


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test leaves no mount below its own directories, and no open descriptor behind."""
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    assert _mounts(tmp_path_factory.getbasetemp()) == []
    if "system" not in request.keywords:
        # Pools and caches of libraries may keep a few open; a leak in a loop shows beyond that.
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 16


def pytest_configure(config: pytest.Config) -> None:
    """What the tests start takes signals as in a terminal, also where the suite itself runs in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if directory := os.environ.get("CARINA_RECORD"):
        from support.recorder import Recorder

        config.pluginmanager.register(Recorder(Path(directory)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root say so and are skipped without it."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root")
    for item in items:
        if "root" in item.keywords or "system" in item.keywords:
            item.add_marker(skip)
