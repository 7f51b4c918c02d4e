"""Whole images between registry, store and archive: pull with unpacking, push, export, import; one layer through a slow
link; small images.

Namespaces share content, and ext4 is slow after many removals: for each run of the large image both peers start anew,
on an ext4 of their own that is empty. `carina` and `ctr` are timed with their starts, as users see it. Pushes go to a
second registry, each to a repository of its own, since nothing would be sent where the blobs could be mounted.

BENCH_RUNS, and for a quick try BENCH_IMAGE_MB (an image of three random layers instead of the large one),
BENCH_LAYER_MB, BENCH_LINK_RATE (bytes a second on each connection) and BENCH_SMALL (pulls of small images).
"""

import os
import secrets
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from bench import large, peers
from bench.costs import Peak, cost, run
from bench.peers import Carina, Containerd, Peer
from support import image as made
from support.constellation import BIN, Constellation
from support.image import Image
from support.link import threaded_link
from support.registry import Registry

_ROUND_TRIP: Final = 0.05
"""Seconds."""
_ONE_CONNECTION: Final = "[images]\nconcurrent_layer_fetch_buffer = 0\n"


class Report(Protocol):
    def add(self, what: str, unit: str, ours: float, theirs: float | None = None) -> None: ...


class _Side(NamedTuple):
    """A peer, and what its own client is told for each step."""

    peer: Peer
    pull: Callable[[str], list[str]]
    fetch: Callable[[str], list[str]]
    push: Callable[[str, str], list[str]]
    save: Callable[[str, str], list[str]]
    load: Callable[[str], list[str]]


def images(report: Report, registry: Registry) -> None:
    runs = int(os.environ.get("BENCH_RUNS", "3"))
    _large(report, registry, runs)
    _slow_link(report, registry)
    _small(report, registry, int(os.environ.get("BENCH_SMALL", "15")))


def _large(report: Report, registry: Registry, runs: int) -> None:
    reference = registry.push("bench/image", "1", whole_image())
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, Registry(Path(directory)) as other:
        figures, memory = _runs(reference, other, runs)
    for step, what in (
        ("pull", "pull and unpack"),
        ("push", "push"),
        ("export", "export"),
        ("import", "import and unpack"),
    ):
        for unit, part in (("", 0), ("  processor time", 1)):
            ours, theirs = (
                statistics.median(one[part] for one in figures[f"{step} {name}"]) * 1000 for name in ("ours", "theirs")
            )
            report.add(unit or f"large image, {what}", "ms", ours, theirs)
    report.add("  memory of all services in a pull, peak (PSS)", "MiB", memory["ours"], memory["theirs"])


def _runs(reference: str, other: Registry, runs: int) -> tuple[dict[str, list[tuple[float, float]]], dict[str, float]]:
    """Costs of each step, and the peak of memory of a pull that is not timed: looking at it takes time, too."""
    figures: dict[str, list[tuple[float, float]]] = {}
    memory: dict[str, float] = {}
    for number in range(runs + 1):
        with _fresh() as sides:
            for name, side in sides.items():
                if number == runs:
                    with Peak(side.peer.pids) as peak:
                        run(side.pull(reference))
                    memory[name] = peak.value
                    continue
                archive = str(large.cache().parent / f"{name}.tar")
                target = other.reference(f"pushed/{secrets.token_hex(8)}", "1")
                for step, command in (
                    ("pull", side.pull(reference)),
                    ("push", side.push(reference, target)),
                    ("export", side.save(archive, reference)),
                ):
                    figures.setdefault(f"{step} {name}", []).append(cost(side.peer, command))
        if number < runs:
            with _fresh() as sides:
                for name, side in sides.items():
                    archive = large.cache().parent / f"{name}.tar"
                    figures.setdefault(f"import {name}", []).append(cost(side.peer, side.load(str(archive))))
                    archive.unlink()
    return figures, memory


def _slow_link(report: Report, registry: Registry) -> None:
    """One layer through a link with a long way and a limit on each connection."""
    size = int(os.environ.get("BENCH_LAYER_MB", "1000")) * 1_000_000
    rate = float(os.environ.get("BENCH_LINK_RATE", "10e6"))
    registry.push("bench/layer", "1", made.build(layers=[made.layer(made.tar({"f": os.urandom(size)}), "")]))
    wall: dict[str, float] = {}
    for name, config in (("ranges", ""), ("one", _ONE_CONNECTION)):
        with _fresh(config) as sides, threaded_link(registry.port, delay=_ROUND_TRIP, rate=rate) as link:
            reference = f"{link.host}/bench/layer:1"
            wall[name], _ = cost(sides["ours"].peer, sides["ours"].fetch(reference))
            if name == "ranges":
                wall["theirs"], _ = cost(sides["theirs"].peer, sides["theirs"].fetch(reference))
    what = f"layer of {size // 1_000_000} MB, {rate / 1e6:.0f} MB/s and 50 ms"
    report.add(f"{what}, in ranges", "ms", wall["ranges"] * 1000, wall["theirs"] * 1000)
    report.add(f"{what}, by one connection", "ms", wall["one"] * 1000, wall["theirs"] * 1000)


def _small(report: Report, registry: Registry, count: int) -> None:
    """Pulls of small images that nobody has, in turns: by `carina`, and by `ctr` on both."""
    walls: dict[str, list[float]] = {}
    with _fresh() as sides:
        ours, theirs = sides["ours"], sides["theirs"]
        ways: dict[str, tuple[Peer, Callable[[str], list[str]]]] = {
            "own": (ours.peer, ours.pull),
            "ctr": (ours.peer, lambda reference: _ctr(ours.peer, "images", "pull", "--plain-http", reference)),
            "theirs": (theirs.peer, theirs.pull),
        }
        for number in range(count):
            layers = [made.layer(made.tar({"f": os.urandom(100_000)})) for _ in range(3)]
            reference = registry.push("bench/small", str(number), made.build(layers=layers))
            for name, (peer, way) in ways.items():
                if name == "ctr":
                    # What `carina pull` has brought is here already: another image for the same peer.
                    layers = [made.layer(made.tar({"f": os.urandom(100_000)})) for _ in range(3)]
                    other = registry.push("bench/small", f"{number}-ctr", made.build(layers=layers))
                wall, _ = cost(peer, way(other if name == "ctr" else reference))
                walls.setdefault(name, []).append(wall)
    median = {name: statistics.median(values) * 1000 for name, values in walls.items()}
    report.add("small image of three layers, carina pull", "ms", median["own"], median["theirs"])
    report.add("small image of three layers, ctr images pull", "ms", median["ctr"], median["theirs"])


def whole_image() -> Image:
    size = int(os.environ.get("BENCH_IMAGE_MB", "0")) * 1_000_000
    if not size:
        return large.build("gzip")
    files = [{f"d{n}/f{m}": os.urandom(size // 150) for m in range(50)} for n in range(3)]
    return made.build(layers=[made.layer(made.tar(one)) for one in files])


@contextmanager
def _fresh(config: str = "") -> Iterator[dict[str, _Side]]:
    """Both peers, begun on empty file systems."""
    place = large.cache()
    place.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        ours = stack.enter_context(peers.fresh_filesystem(place / "carina.img"))
        theirs = stack.enter_context(peers.fresh_filesystem(place / "containerd.img"))
        containerd = stack.enter_context(peers.containerd(root=theirs / "containerd"))
        constellation = Constellation(config=config, namespace=Carina.namespace)
        constellation.root = ours / "carina"
        stack.enter_context(constellation)
        yield {"theirs": _theirs(containerd), "ours": _ours(Carina(constellation))}


def _ours(peer: Carina) -> _Side:
    own = [str(BIN / "carina"), "--address", f"unix://{peer.socket}", "-n", peer.namespace]
    return _Side(
        peer,
        pull=lambda reference: [*own, "pull", "-q", "--plain-http", reference],
        fetch=lambda reference: [*own, "pull", "-q", "--no-unpack", "--plain-http", reference],
        push=lambda source, target: [*own, "push", "-q", "--plain-http", source, target],
        save=lambda archive, reference: [*own, "export", archive, reference],
        load=lambda archive: [*own, "import", "-q", archive],
    )


def _theirs(peer: Containerd) -> _Side:
    return _Side(
        peer,
        pull=lambda reference: _ctr(peer, "images", "pull", "--plain-http", reference),
        fetch=lambda reference: _ctr(peer, "content", "fetch", "--plain-http", reference),
        push=lambda source, target: _ctr(peer, "images", "push", "--plain-http", target, source),
        save=lambda archive, reference: _ctr(peer, "images", "export", archive, reference),
        load=lambda archive: _ctr(peer, "images", "import", archive),
    )


def _ctr(peer: Peer, *arguments: str) -> list[str]:
    return ["ctr", "--address", str(peer.socket), "--namespace", peer.namespace, *arguments]
