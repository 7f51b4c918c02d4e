"""Unpacking what is in the content store already: snapshots prepared, layers applied, flushed and committed.

Either peer has a fresh ext4 to itself, each run is in a namespace of its own, and nothing is removed: ext4 takes ten
times as long to make a file where many others were removed within the last five minutes. Namespaces share the
content, not the snapshots.

Three ways: `ctr snapshots unpack` on a containerd, the same command on Carina (which then applies one layer at a
time, as that client asks for it), and Carina's own pull, which finds every blob there and unpacks in imaged.
"""

import os
import resource
import statistics
import subprocess
import threading
from collections.abc import Sequence
from typing import Final, Protocol, Self

from bench import large, peers
from bench.peers import Carina, Containerd, Peer
from support.constellation import BIN, Constellation
from support.registry import Registry

_SECONDS: Final = 900


class Report(Protocol):
    def add(self, what: str, unit: str, ours: float, theirs: float | None = None) -> None: ...


def unpacking(report: Report, registry: Registry) -> None:
    """Medians of wall and processor time, of server and client together, for gzip and for zstd."""
    for compression in os.environ.get("BENCH_COMPRESSIONS", "gzip zstd").split():
        image = large.build(compression)
        reference = registry.push("bench/large-image", compression, image)
        digest = image.digest
        del image
        with (
            peers.fresh_filesystem(large.cache() / "carina.img") as ours,
            peers.fresh_filesystem(large.cache() / "containerd.img") as theirs,
            peers.containerd(root=theirs / "containerd") as containerd,
        ):
            constellation = Constellation()
            constellation.root = ours / "carina"
            with constellation:
                runs = _Runs(Carina(constellation), containerd, digest=digest, reference=reference)
                runs.report(report, f"unpack, {compression}", int(os.environ.get("BENCH_RUNS", "3")))


class _Runs:
    """Runs of one image, in one namespace after the other."""

    def __init__(self, carina: Carina, containerd: Containerd, *, digest: str, reference: str) -> None:
        self._carina = carina
        self._containerd = containerd
        self._digest = digest
        self._reference = reference
        self._number = 0

    def report(self, report: Report, what: str, runs: int) -> None:
        ways = {"theirs": self._theirs, "ctr": self._by_ctr, "own": self._own}
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(runs):
            for name, way in ways.items():
                figures[name].append(way())
        wall = {name: statistics.median(a for a, _ in values) * 1000 for name, values in figures.items()}
        processor = {name: statistics.median(b for _, b in values) * 1000 for name, values in figures.items()}
        report.add(f"{what}, carina pull", "ms", wall["own"], wall["theirs"])
        report.add("  processor time", "ms", processor["own"], processor["theirs"])
        report.add(f"{what}, ctr snapshots unpack", "ms", wall["ctr"], wall["theirs"])
        report.add("  processor time", "ms", processor["ctr"], processor["theirs"])
        with _Peak(self._carina) as peak:
            self._own()
        report.add("  memory of imaged and its workers, peak (PSS)", "MiB", peak.value)

    def _theirs(self) -> tuple[float, float]:
        ctr = self._ctr(self._containerd)
        _run([*ctr, "content", "fetch", "--plain-http", self._reference])
        return _cost(self._containerd, [*ctr, "snapshots", "unpack", self._digest])

    def _by_ctr(self) -> tuple[float, float]:
        ctr = self._ctr(self._carina)
        _run([*ctr, "content", "fetch", "--plain-http", self._reference])
        return _cost(self._carina, [*ctr, "snapshots", "unpack", self._digest])

    def _own(self) -> tuple[float, float]:
        self._number += 1
        own = [str(BIN / "carina"), "--address", f"unix://{self._carina.socket}", "-n", f"bench-own-{self._number}"]
        _run([*own, "pull", "-q", "--no-unpack", "--plain-http", self._reference])
        return _cost(self._carina, [*own, "pull", "-q", "--plain-http", self._reference])

    def _ctr(self, peer: Peer) -> list[str]:
        self._number += 1
        return ["ctr", "--address", str(peer.socket), "--namespace", f"bench-{self._number}"]


def _cost(peer: Peer, command: Sequence[str]) -> tuple[float, float]:
    """Wall and processor seconds, with nothing waiting to be written when it begins."""
    os.sync()
    before = peers.processor_seconds(peer.pids()) + _children()
    seconds = peers.timed(lambda: _run(command))
    used = peers.processor_seconds(peer.pids()) + _children() - before
    if os.environ.get("BENCH_VERBOSE"):
        print(
            f"{peer.name}: {seconds:.1f} s, {used:.1f} s of processor time, load {os.getloadavg()[0]:.1f}", flush=True
        )
    return seconds, used


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class _Peak:
    """The most memory that imaged and its workers had at any of many moments of the block."""

    def __init__(self, carina: Carina) -> None:
        (self._imaged,) = (pid for pid in carina.pids() if "imaged" in peers.command_of(pid))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch memory")
        self.value = 0.0

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            try:
                self.value = max(self.value, peers.pss(peers.with_children(self._imaged)))
            except (FileNotFoundError, ProcessLookupError, StopIteration):
                continue

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=_SECONDS)
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(command)}: {done.stderr.strip()}")
