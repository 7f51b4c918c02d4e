"""Unpacking what is in the content store already: snapshots prepared, layers applied, flushed and committed.

Either peer has a fresh ext4 to itself, each run is in a namespace of its own, and nothing is removed: ext4 takes ten
times as long to make a file where many others were removed within the last five minutes. Namespaces share the
content, not the snapshots.

Three ways: `ctr snapshots unpack` on a containerd, the same command on Carina (which then applies one layer at a
time, as that client asks for it), and Carina's own pull, which finds every blob there and unpacks in imaged.
"""

import os
import statistics
from typing import Protocol

from bench import large, peers
from bench.costs import Peak, cost, run
from bench.peers import Carina, Containerd, Peer
from support.constellation import BIN, Constellation
from support.registry import Registry


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
        (imaged,) = (pid for pid in self._carina.pids() if "imaged" in peers.command_of(pid))
        with Peak(lambda: peers.with_children(imaged)) as peak:
            self._own()
        report.add("  memory of imaged and its workers, peak (PSS)", "MiB", peak.value)

    def _theirs(self) -> tuple[float, float]:
        ctr = self._ctr(self._containerd)
        run([*ctr, "content", "fetch", "--plain-http", self._reference])
        return cost(self._containerd, [*ctr, "snapshots", "unpack", self._digest])

    def _by_ctr(self) -> tuple[float, float]:
        ctr = self._ctr(self._carina)
        run([*ctr, "content", "fetch", "--plain-http", self._reference])
        return cost(self._carina, [*ctr, "snapshots", "unpack", self._digest])

    def _own(self) -> tuple[float, float]:
        self._number += 1
        own = [str(BIN / "carina"), "--address", f"unix://{self._carina.socket}", "-n", f"bench-own-{self._number}"]
        run([*own, "pull", "-q", "--no-unpack", "--plain-http", self._reference])
        return cost(self._carina, [*own, "pull", "-q", "--plain-http", self._reference])

    def _ctr(self, peer: Peer) -> list[str]:
        self._number += 1
        return ["ctr", "--address", str(peer.socket), "--namespace", f"bench-{self._number}"]
