"""imaged and its workers killed at any moment of pulls of several layers: nothing of it stays on the machine."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carina.layer.worker import NAME
from support.constellation import BIN, Constellation
from support.image import build, layer, tar
from support.registry import Registry

ROUNDS = 4
LAYERS = 5


@pytest.fixture(scope="module")
def layered(registry: Registry) -> str:
    """An image whose layers take a moment to unpack."""
    layers = [
        layer(tar({f"l{number}-{file}": os.urandom(10) + bytes(200_000) for file in range(40)}))
        for number in range(LAYERS)
    ]
    return registry.push("test/layered", "1", build(layers=layers))


@pytest.fixture(scope="module")
def own() -> Iterator[Constellation]:
    """Not the one that other tests share: a service that is killed often is started again less and less soon."""
    with Constellation(namespace=f"killed-{os.getpid()}") as running:
        yield running


def _wait(condition: Callable[[], object], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    return []


def _imaged(own: Constellation) -> int:
    """The process of imaged, 0 while there is none that is well."""
    for line in own.carina("status", *own.paths, check=False).output.splitlines():
        fields = line.split()
        if fields[:2] == ["imaged", "ok"]:
            return int(fields[2])
    return 0


def _workers(imaged: int) -> list[int]:
    first = _children(imaged)
    return first + [child for pid in first for child in _children(pid)]


def _left(own: Constellation, workers: set[int]) -> list[str]:
    """Workers that still run, and mounts of the constellation that anybody sees."""
    found = [f"process {pid}" for pid in workers if _is_worker(pid)]
    place = str(own.root)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if place in Path("/proc", pid, "mountinfo").read_text():
                found.append(f"mount seen by {pid}")
    return found


def _is_worker(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == NAME
    return False


def _killed_pull(own: Constellation, reference: str, dice: random.Random, *, whole: bool) -> set[int]:
    """Kill imaged (`whole`) or one of its workers somewhere in a pull. Returns all workers that were seen."""
    imaged = _imaged(own)
    command = [str(BIN / "carina"), "--address", own.address, "-n", own.namespace]
    seen: set[int] = set()
    with subprocess.Popen([*command, "pull", "-q", "--plain-http", reference], stderr=subprocess.DEVNULL) as pull:
        _wait(lambda: _workers(imaged) or pull.poll() is not None)
        for _ in range(dice.randrange(15)):
            seen.update(_workers(imaged))
            time.sleep(0.01)
        victims = [imaged] if whole else _workers(imaged)
        seen.update(_workers(imaged))
        with contextlib.suppress(ProcessLookupError):
            if victims:
                os.kill(dice.choice(victims), signal.SIGKILL)
        pull.wait(60)
    return seen


def test_nothing_stays_of_a_killed_pull(own: Constellation, layered: str) -> None:
    """No process, no mount; and when leases of pulls that were cut off have gone, no snapshot, directory or blob. The
    pull after it brings the image as it is."""
    dice = random.Random(os.getpid())
    for number in range(ROUNDS):
        _wait(lambda: _imaged(own))
        workers = _killed_pull(own, layered, dice, whole=number % 2 == 0)
        _wait(lambda: not _left(own, workers))  # noqa: B023
        own.ctr("images", "rm", "--sync", layered, check=False)
    _wait(lambda: _imaged(own))
    own.carina("pull", "-q", "--plain-http", layered)
    kinds = [line.split()[-1] for line in own.ctr("snapshots", "ls").output.splitlines()[1:]]
    assert kinds.count("Committed") == LAYERS

    leases = own.ctr("leases", "ls", "-q").output.split()
    for lease in leases:
        own.ctr("leases", "rm", lease)
    own.ctr("images", "rm", "--sync", layered)
    assert own.ctr("snapshots", "ls").output.splitlines()[1:] == []
    assert own.ctr("content", "ls", "-q").output.split() == []
    trees = own.root / "snapshotd-overlayfs/snapshots"
    _wait(lambda: os.listdir(trees) == [])
    assert list((own.root / "imaged/scratch").iterdir()) == []
