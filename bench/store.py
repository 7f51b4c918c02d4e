"""Large stores: what it costs to list them, to write to them, to collect in them, and to hold them.

Both sides get the same images through their API, and grow from one size to the next. Nothing is unpacked.
"""

import argparse
import itertools
import os
import re
import statistics
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from bench import load, peers
from bench.load import BLOBS, Client
from bench.peers import Carina, Containerd, Peer, timed
from carina.api.carina.gc.v1 import RunRequest, RunResponse
from carina.rpc import codec
from support.constellation import Constellation

CONFIG: Final = '[metadata.gc]\nschedule_delay = "1h"\n'
"""Collections are those that are asked for, as they are at containerd with few deletions."""
WRITERS: Final = 64
BLOB: Final = 4096
"""Bytes that each of them writes at a time."""
_ELAPSED: Final = re.compile(r'msg="garbage collected".* d="?([0-9.]+)(ns|µs|ms|s)')
_UNITS: Final = {"ns": 1e-6, "µs": 1e-3, "ms": 1.0, "s": 1e3}


class Report(Protocol):
    def add(self, what: str, unit: str, ours: float, theirs: float | None = None) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    sizes: list[int] = field(default_factory=lambda: [1_000, 10_000, 50_000])
    runs: int = 7
    writes: int = 2_000


def options(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(prog="python -m bench store", description=__doc__)
    default = Options()
    parser.add_argument("--sizes", type=int, nargs="+", default=default.sizes, help="blobs in the stores, ascending")
    parser.add_argument("--runs", type=int, default=default.runs, help="runs of which the median is taken")
    parser.add_argument("--writes", type=int, default=default.writes, help="blobs of 4 KiB that the writers write")
    return Options(**vars(parser.parse_args(arguments)))


def store(report: Report, arguments: list[str]) -> None:
    """Measure with a constellation and a containerd of its own."""
    chosen = options(arguments)
    with (
        Constellation(namespace=Carina.namespace, config=CONFIG) as constellation,
        peers.containerd(debug=True) as containerd,
    ):
        measure(report, chosen, Carina(constellation), containerd)
        constellation.stop()  # or else it would remove every image before its directory goes


def measure(report: Report, chosen: Options, carina: Carina, containerd: Containerd) -> None:
    sides = _Side(carina), _Side(containerd)
    held, removed = 0, itertools.count()
    for size in sorted(chosen.sizes):
        wanted = size // BLOBS
        _both(sides, lambda side: load.build(side.client, range(held, wanted)))  # noqa: B023
        held = wanted
        listing(report, size, chosen.runs, *sides)
        collecting(report, size, chosen.runs, *sides, removed=removed)
    writing(report, held * BLOBS, chosen, *sides)
    memory(report, held * BLOBS, *sides)


class _Side:
    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.client = Client(peer.socket, peer.namespace, threads=WRITERS)


def _both(sides: "tuple[_Side, _Side]", work: "Callable[[_Side], None]") -> None:
    """At the same time: containerd mostly waits for its disk."""
    threads = [threading.Thread(target=work, args=(side,)) for side in sides]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def listing(report: Report, size: int, runs: int, ours: _Side, theirs: _Side) -> None:
    def everything(side: _Side) -> None:
        for _ in side.client.stream(load.SERVICES + "content.v1.Content/List"):
            pass

    works: dict[str, Callable[[_Side], object]] = {
        "ctr content ls -q": lambda side: peers.command(side.peer, "content", "ls", "-q"),
        "ctr images ls -q": lambda side: peers.command(side.peer, "images", "ls", "-q"),
        "Content.List": everything,
        "Images.List": lambda side: side.client.call(load.SERVICES + "images.v1.Images/List"),
    }
    for what, work in works.items():
        a, b = _alternating(work, ours, theirs, runs if "ontent" in what else 3 * runs)
        report.add(f"{what}, {size} blobs", "ms", a, b)


def collecting(report: Report, size: int, runs: int, ours: _Side, theirs: _Side, *, removed: Iterator[int]) -> None:
    """Remove an image and wait until its blobs are gone; then others, to see how long the records were locked."""
    numbers = [next(removed) for _ in range(runs * 2)]
    log = _Log(theirs.peer)
    pairs = [
        (
            timed(lambda: load.remove(ours.client, number, sync=True)),  # noqa: B023
            timed(lambda: load.remove(theirs.client, number, sync=True)),  # noqa: B023
        )
        for number in numbers[:runs]
    ]
    a, b = (statistics.median(side) * 1000 for side in zip(*pairs, strict=True))
    report.add(f"ctr images rm --sync, a small one of {size} blobs", "ms", a, b)
    locked = [_locked(ours.client, number) for number in numbers[runs:]]
    for number in numbers[runs:]:
        load.remove(theirs.client, number, sync=True)
    report.add(
        f"  of which records are locked, {size} blobs",
        "ms",
        statistics.median(locked),
        statistics.median(log.collections()),
    )


def _locked(client: Client, number: int) -> float:
    load.remove(client, number, sync=False)
    answer = client.call("/carina.gc.v1.GC/Run", codec.encode(RunRequest(sync=True)))
    collection = codec.decode(RunResponse, answer)
    if sum(one.objects for one in collection.removed) != BLOBS:
        raise SystemExit(f"bench: a collection removed {collection.removed}, not one image of {BLOBS} blobs")
    return collection.lock_seconds * 1000


class _Log:
    """What containerd says of its collections: for how long each locked its records."""

    def __init__(self, peer: Peer) -> None:
        assert isinstance(peer, Containerd)
        self._path: Path = peer.directory / "log"
        self._from = self._path.stat().st_size

    def collections(self) -> list[float]:
        """Milliseconds, since this was made."""
        text = self._path.read_bytes()[self._from :].decode()
        return [float(amount) * _UNITS[unit] for amount, unit in _ELAPSED.findall(text)]


def writing(report: Report, size: int, chosen: Options, ours: _Side, theirs: _Side) -> None:
    """Many writers of small blobs at once; a blob is durable when its writer goes on to the next."""

    def one(side: _Side) -> float:
        messages = [load.write(os.urandom(BLOB), {}) for _ in range(chosen.writes)]
        load.lease(side.client, "small")
        seconds = timed(lambda: side.client.each(lambda data: side.client.write(data, lease="small"), messages))
        load.unlease(side.client, "small")
        return seconds * 1e6 / chosen.writes

    pairs = [(one(ours), one(theirs)) for _ in range(3)]
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    report.add(f"{WRITERS} writers of 4 KiB, per blob, into {size} blobs", "us", a, b)


def memory(report: Report, size: int, ours: _Side, theirs: _Side) -> None:
    services = {peers.command_of(pid): pid for pid in ours.peer.pids()}
    whole = peers.pss(theirs.peer.pids())
    report.add(f"memory of metadatad (PSS), {size} blobs", "MiB", peers.pss([services["metadatad"]]), whole)
    report.add(f"memory of all processes (PSS), {size} blobs", "MiB", peers.pss(ours.peer.pids()), whole)


def _alternating(work: Callable[[_Side], object], ours: _Side, theirs: _Side, runs: int) -> tuple[float, float]:
    """Medians in milliseconds, taken in turns."""
    pairs = [(timed(lambda: work(ours)), timed(lambda: work(theirs))) for _ in range(runs)]
    return statistics.median(a for a, _ in pairs) * 1000, statistics.median(b for _, b in pairs) * 1000
