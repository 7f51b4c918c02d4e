"""Shims: containerd with its own, Carina with the same, and Carina with ours. Runs, starts side by side, memory."""

import os
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

from bench import peers
from bench.peers import Carina, Containerd, Peer, command, timed
from support import image
from support.registry import Registry

GO: Final = "io.containerd.runc.v2"
OWN: Final = "io.containerd.carina.v1"
_RUNS: Final = 15
_STARTS: Final = 100
_AT_ONCE: Final = 8
_MEASURED: Final = (10, 50)


class Report(Protocol):
    def add(self, what: str, unit: str, ours: float, theirs: float | None = None) -> None: ...


def shims(report: Report, carina: Carina, containerd: Containerd, registry: Registry) -> None:
    reference = registry.push("bench/shims", "1", image.build())
    for peer in (carina, containerd):
        command(peer, "images", "pull", "--plain-http", reference)
    sides: list[tuple[str, Peer, str]] = [
        ("containerd", containerd, GO),
        ("containerd's shim", carina, GO),
        ("our shim", carina, OWN),
    ]
    _runs(report, sides, reference)
    _starts(report, sides, reference)
    _memory(report, sides, reference)


def _runs(report: Report, sides: list[tuple[str, Peer, str]], reference: str) -> None:
    figures: dict[str, list[float]] = {name: [] for name, _, _ in sides}
    for _ in range(_RUNS):
        for name, peer, runtime in sides:
            arguments = ("run", "--rm", "--runtime", runtime, reference, f"bench-{os.getpid()}", "true")
            figures[name].append(timed(lambda p=peer, a=arguments: command(p, *a)) * 1000)
    median = {name: statistics.median(values) for name, values in figures.items()}
    for name in ("containerd's shim", "our shim"):
        report.add(f"ctr run --rm IMAGE true, {name}", "ms", median[name], median["containerd"])


def _started(peer: Peer, runtime: str, reference: str, count: int) -> list[str]:
    ids = [f"bench-{os.getpid()}-{index}" for index in range(count)]

    def start(id: str) -> None:
        command(peer, "run", "--detach", "--runtime", runtime, reference, id, "sleep", "1000")

    _side_by_side(start, ids)
    return ids


def _side_by_side(work: Callable[[str], None], ids: list[str]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(work, ids))


def _remove(peer: Peer, ids: list[str]) -> None:
    def remove(id: str) -> None:
        command(peer, "tasks", "rm", "--force", id)
        command(peer, "containers", "rm", id)

    _side_by_side(remove, ids)


def _starts(report: Report, sides: list[tuple[str, Peer, str]], reference: str) -> None:
    figures: dict[str, float] = {}
    for name, peer, runtime in sides:
        started: list[str] = []
        figures[name] = timed(lambda p=peer, r=runtime, s=started: s.extend(_started(p, r, reference, _STARTS)))
        _remove(peer, started)
    what = f"start of {_STARTS} containers, {_AT_ONCE} at a time"
    for name in ("containerd's shim", "our shim"):
        report.add(f"{what}, {name}", "ms", figures[name] * 1000, figures["containerd"] * 1000)


def _memory(report: Report, sides: list[tuple[str, Peer, str]], reference: str) -> None:
    _, containerd, _ = sides[0]
    for count in _MEASURED:
        used = {}
        for peer, runtime in ((containerd, GO), (sides[2][1], OWN)):
            ids = _started(peer, runtime, reference, count)
            used[runtime] = peers.pss(_shims(peer)) / count * 1024
            _remove(peer, ids)
        report.add(f"memory of shims per container, {count} running (PSS)", "KiB", used[OWN], used[GO])


def _shims(peer: Peer) -> list[int]:
    """Process ids of the shims of a peer's namespace."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        if peer.namespace in words and str(peer.socket) in words and any("containerd-shim-" in word for word in words):
            found.append(int(path.parent.name))
    return found
