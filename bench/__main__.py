"""Measure, print, and write bench/latest.json: `python -m bench [NAME...]`, `python -m bench store|cli [OPTION...]`."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import peers
from bench.cli import cli
from bench.client import client
from bench.diff import diffs
from bench.images import images
from bench.latency import concurrency, restarts
from bench.peers import Carina, Containerd, Peer, command, timed
from bench.shims import shims
from bench.snapshots import snapshots
from bench.store import store
from bench.unpack import unpacking
from support import image
from support.constellation import BIN, Constellation
from support.registry import Registry

HERE = Path(__file__).resolve().parent
LAYER = 100_000_000
RUNS = 7


class Report:
    """Rows of figures: each with Carina's value, containerd's where there is one, and the ratio."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def add(self, what: str, unit: str, ours: float, theirs: float | None = None) -> None:
        ratio = ours / theirs if theirs else None
        self.rows.append({"what": what, "unit": unit, "carina": ours, "containerd": theirs, "ratio": ratio})
        shown = f"{theirs:10.1f}  {ratio:6.2f}" if theirs and ratio else f"{'-':>10}  {'-':>6}"
        print(f"{what:58} {unit:4} {ours:10.1f} {shown}", flush=True)

    def save(self) -> None:
        """Write the figures in place of earlier ones of the same names; what was not measured now stays."""
        path = HERE / "latest.json"
        measured = {row["what"]: row for row in self.rows}
        before = json.loads(path.read_text()) if path.exists() else []
        rows = [measured.pop(row["what"], row) for row in before]
        path.write_text(json.dumps([*rows, *measured.values()], indent=2) + "\n")


def alternating(ours: Callable[[], object], theirs: Callable[[], object], runs: int = RUNS) -> tuple[float, float]:
    """Medians in milliseconds of both, taken in turns so that the machine's moods hit both."""
    pairs = [(timed(ours), timed(theirs)) for _ in range(runs)]
    return statistics.median(a for a, _ in pairs) * 1000, statistics.median(b for _, b in pairs) * 1000


def start_and_memory(report: Report, carina: Carina, containerd: Containerd) -> None:
    def once() -> float:
        constellation = Constellation()
        try:
            return timed(constellation.start)
        finally:
            constellation.__exit__()

    report.add("carina up to ready", "ms", statistics.median(once() for _ in range(3)) * 1000)
    time.sleep(2)
    report.add("memory, idle (PSS)", "MiB", peers.pss(carina.pids()), peers.pss(containerd.pids()))


def latency(report: Report, carina: Carina, containerd: Containerd) -> None:
    """Unary calls from Google's C++ client, so that no client of ours is measured along."""
    import grpc

    def caller(socket: Path, method: str, metadata: list[tuple[str, str]]) -> Callable[[], object]:
        channel = grpc.insecure_channel(f"unix:{socket}")
        call = channel.unary_unary(method)
        call(b"", metadata=metadata, timeout=10)

        def hundred() -> None:
            for _ in range(100):
                call(b"", metadata=metadata, timeout=10)

        return hundred

    metadata = [("containerd-namespace", "bench")]
    state = carina.constellation.state
    version = "/containerd.services.version.v1.Version/Version"
    containers = "/containerd.services.containers.v1.Containers/List"
    for what, socket, method in (
        ("Version, at the gateway", carina.socket, version),
        ("Version, at metadatad", state / "metadatad.sock", version),
        ("Containers.List, through the gateway", carina.socket, containers),
        ("Containers.List, at metadatad", state / "metadatad.sock", containers),
    ):
        ours, theirs = caller(socket, method, metadata), caller(containerd.socket, method, metadata)
        a, b = alternating(ours, theirs)
        report.add(f"{what}, unary call", "us", a * 10, b * 10)


def running(report: Report, carina: Carina, containerd: Containerd, registry: Registry) -> None:
    reference = registry.push("bench/busybox", "1", image.build())
    command(carina, "images", "pull", "--plain-http", reference)
    command(containerd, "images", "pull", "--plain-http", reference)

    def run(peer: Peer) -> None:
        command(peer, "run", "--rm", reference, f"bench-{os.getpid()}", "true")

    ours, theirs = alternating(lambda: run(carina), lambda: run(containerd))
    report.add("ctr run --rm IMAGE true", "ms", ours, theirs)

    def own() -> None:
        full = [str(BIN / "carina"), "--address", f"unix://{carina.socket}", "-n", carina.namespace]
        subprocess.run(
            [*full, "run", "--rm", reference, "bench-own", "true"], capture_output=True, check=True, timeout=60
        )

    report.add("carina run --rm IMAGE true", "ms", statistics.median(timed(own) for _ in range(RUNS)) * 1000, theirs)


def pulling(report: Report, carina: Carina, containerd: Containerd, registry: Registry) -> None:
    # Half of it compresses well and half not at all, like a layer of programs and of archives.
    halves = {"noise": os.urandom(LAYER // 2), "text": (b"the quick brown fox " * 4096)[: 1 << 16] * (LAYER // 2 >> 16)}
    layer = image.layer(image.tar(halves))
    reference = registry.push("bench/large", "1", image.build(layers=[layer]))

    def pull(peer: Peer) -> None:
        command(peer, "images", "pull", "--plain-http", reference)

    def own() -> None:
        full = [str(BIN / "carina"), "--address", f"unix://{carina.socket}", "-n", carina.namespace]
        subprocess.run([*full, "pull", "-q", "--plain-http", reference], capture_output=True, check=True, timeout=300)

    def remove(peer: Peer) -> None:
        command(peer, "images", "rm", "--sync", reference)

    figures: dict[str, list[float]] = {}
    for _ in range(3):
        for name, peer, work in (
            ("theirs", containerd, lambda: pull(containerd)),
            ("ctr", carina, lambda: pull(carina)),
            ("own", carina, own),
        ):
            before = peers.processor_seconds(peer.pids())
            figures.setdefault(name, []).append(timed(work))
            figures.setdefault(f"{name} cpu", []).append(peers.processor_seconds(peer.pids()) - before)
            remove(peer)
    command(carina, "images", "pull", "--plain-http", reference)
    command(containerd, "images", "pull", "--plain-http", reference)
    digest = layer.blob.digest
    ours, theirs = alternating(
        lambda: command(carina, "content", "get", digest), lambda: command(containerd, "content", "get", digest), 3
    )
    report.add("ctr content get, 50 MB", "ms", ours, theirs)
    median = {name: statistics.median(values) * 1000 for name, values in figures.items()}
    report.add("ctr images pull, one 100 MB layer", "ms", median["ctr"], median["theirs"])
    report.add("carina pull, one 100 MB layer", "ms", median["own"], median["theirs"])
    report.add("  processor time of the server, ctr images pull", "ms", median["ctr cpu"], median["theirs cpu"])
    report.add("  processor time of the server, carina pull", "ms", median["own cpu"], median["theirs cpu"])


def main() -> None:
    if os.geteuid() != 0:
        raise SystemExit("bench: this needs root (sudo make bench)")
    wanted = set(sys.argv[1:])
    report = Report()
    print(f"{'':58} {'unit':4} {'carina':>10} {'containerd':>10}  {'ratio':>6}")
    if sys.argv[1:2] == ["store"]:
        store(report, sys.argv[2:])
    elif sys.argv[1:2] == ["cli"]:
        cli(report, sys.argv[2:])
    else:
        parts_of_one(report, wanted)
        if not wanted:
            store(report, [])
            cli(report, [])
    if not os.environ.get("CARINA_BENCH_QUICK"):
        report.save()


def parts_of_one(report: Report, wanted: set[str]) -> None:
    """Everything that is measured at one constellation and one containerd, or some of it."""
    with (
        Constellation(namespace=Carina.namespace) as constellation,
        peers.containerd() as containerd,
        Registry(constellation.directory / "registry") as registry,
    ):
        carina = Carina(constellation)
        parts: dict[str, Callable[[], None]] = {
            "start": lambda: start_and_memory(report, carina, containerd),
            "latency": lambda: latency(report, carina, containerd),
            "concurrency": lambda: concurrency(report, carina, containerd),
            "restarts": lambda: restarts(report, carina),
            "run": lambda: running(report, carina, containerd, registry),
            "client": lambda: client(report, carina, containerd, registry),
            "shims": lambda: shims(report, carina, containerd, registry),
            "pull": lambda: pulling(report, carina, containerd, registry),
            "snapshots": lambda: snapshots(report),
            "unpack": lambda: unpacking(report, registry),
            "images": lambda: images(report, registry),
            "diff": lambda: diffs(report, registry),
        }
        for name, part in parts.items():
            if not wanted or name in wanted:
                part()
        report.add("memory, after the work (PSS)", "MiB", peers.pss(carina.pids()), peers.pss(containerd.pids()))


if __name__ == "__main__":
    main()
