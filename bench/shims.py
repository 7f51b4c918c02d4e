"""Shims: containerd with its own, Carina with the same, and Carina with ours.

Runs with `ctr` and with `carina`, starts side by side, memory, further processes, output, and how soon an end is told.
CARINA_BENCH_QUICK=1 in the environment takes small numbers, to see that it works.
"""

import contextlib
import os
import queue
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

from bench import peers
from bench.peers import Carina, Containerd, Peer, command, timed
from support import image
from support.constellation import BIN
from support.registry import Registry

GO: Final = "io.containerd.runc.v2"
OWN: Final = "io.containerd.carina.v1"
_QUICK: Final = bool(os.environ.get("CARINA_BENCH_QUICK"))
_RUNS: Final = 2 if _QUICK else 15
_STARTS: Final = 8 if _QUICK else 100
_AT_ONCE: Final = 8
_MEASURED: Final = (4,) if _QUICK else (10, 50, 200)
_EXECS: Final = 2 if _QUICK else 25
_ENDS: Final = 2 if _QUICK else 25
_OUTPUT: Final = 32 if _QUICK else 1024
"""MiB through a container's standard output."""
_SETTLE_SECONDS: Final = 2.0
_END_SECONDS: Final = 30.0


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
    _own_runs(report, sides, reference)
    _starts(report, sides, reference)
    _memory(report, sides, reference)
    _execs(report, sides, reference)
    _output(report, sides, reference)
    _ends(report, sides, reference)


def _compared(report: Report, what: str, unit: str, figures: dict[str, list[float]], containerd: str) -> None:
    """Medians of every side but containerd's, beside that."""
    theirs = statistics.median(figures[containerd])
    for name, values in figures.items():
        if name != containerd:
            report.add(f"{what}, {name}", unit, statistics.median(values), theirs)


def _runs(report: Report, sides: list[tuple[str, Peer, str]], reference: str) -> None:
    figures: dict[str, list[float]] = {name: [] for name, _, _ in sides}
    for _ in range(_RUNS):
        for name, peer, runtime in sides:
            arguments = ("run", "--rm", "--runtime", runtime, reference, f"bench-{os.getpid()}", "true")
            figures[name].append(timed(lambda p=peer, a=arguments: command(p, *a)) * 1000)
    _compared(report, "ctr run --rm IMAGE true", "ms", figures, "containerd")


def _own_runs(report: Report, sides: list[tuple[str, Peer, str]], reference: str) -> None:
    """`carina run` beside what users of containerd have: `ctr run`."""
    figures: dict[str, list[float]] = {name: [] for name, _, _ in sides}
    for _ in range(_RUNS):
        for name, peer, runtime in sides:
            arguments = ("run", "--rm", "--runtime", runtime, reference, f"bench-{os.getpid()}", "true")
            call = command if name == "containerd" else _carina
            figures[name].append(timed(lambda c=call, p=peer, a=arguments: c(p, *a)) * 1000)
    _compared(report, "carina run --rm IMAGE true", "ms", figures, "containerd")


def _carina(peer: Peer, *arguments: str) -> None:
    full = [str(BIN / "carina"), "--address", f"unix://{peer.socket}", "-n", peer.namespace, *arguments]
    subprocess.run(full, capture_output=True, check=True, timeout=120)


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


@contextlib.contextmanager
def _one(peer: Peer, runtime: str, reference: str) -> Iterator[str]:
    """A container that runs meanwhile."""
    ids = _started(peer, runtime, reference, 1)
    try:
        yield ids[0]
    finally:
        _remove(peer, ids)


def _execs(report: Report, sides: list[tuple[str, Peer, str]], reference: str) -> None:
    figures: dict[str, list[float]] = {}
    for name, peer, runtime in sides:
        with _one(peer, runtime, reference) as id:
            for number in range(_EXECS):
                arguments = ("tasks", "exec", "--exec-id", f"e{number}", id, "true")
                figures.setdefault(name, []).append(timed(lambda p=peer, a=arguments: command(p, *a)) * 1000)
    _compared(report, "ctr tasks exec ID true", "ms", figures, "containerd")


def _output(report: Report, sides: list[tuple[str, Peer, str]], reference: str) -> None:
    """As `ctr` takes it out of the FIFO; what a run takes without output is taken off."""
    figures: dict[str, list[float]] = {name: [] for name, _, _ in sides}
    for _ in range(1 if _QUICK else 3):
        for name, peer, runtime in sides:
            words = ("run", "--rm", "--runtime", runtime, reference, f"bench-{os.getpid()}")
            write = ("dd", "if=/dev/zero", "bs=1M", f"count={_OUTPUT}")
            empty = timed(lambda p=peer, w=words: _discarded(p, *w, "true"))
            full = timed(lambda p=peer, w=words, d=write: _discarded(p, *w, *d))
            figures[name].append((full - empty) * 1000)
    _compared(report, f"{_OUTPUT} MiB through a container's output", "ms", figures, "containerd")


def _discarded(peer: Peer, *arguments: str) -> None:
    full = ["ctr", "--address", str(peer.socket), "--namespace", peer.namespace, *arguments]
    null = subprocess.DEVNULL
    subprocess.run(full, stdin=null, stdout=null, stderr=null, check=True, timeout=600)


def _ends(report: Report, sides: list[tuple[str, Peer, str]], reference: str) -> None:
    """From the kill of a container's process to the event at a subscriber, which is Google's C++ client."""
    figures: dict[str, list[float]] = {name: [] for name, _, _ in sides}
    for name, peer, runtime in sides:
        ids = _started(peer, runtime, reference, _ENDS)
        told = _subscribed(peer)
        time.sleep(_SETTLE_SECONDS)
        for id, pid in _pids(peer, ids).items():
            begun = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            figures[name].append((_told(told, id) - begun) * 1000)
        _remove(peer, ids)
    _compared(report, "from a process's end to its event", "ms", figures, "containerd")


def _subscribed(peer: Peer) -> "queue.Queue[tuple[float, bytes]]":
    """What comes from now on, with the moment of its arrival."""
    import grpc

    told: queue.Queue[tuple[float, bytes]] = queue.Queue()
    channel = grpc.insecure_channel(f"unix:{peer.socket}")
    stream = channel.unary_stream("/containerd.services.events.v1.Events/Subscribe")(b"")

    def read() -> None:
        with contextlib.suppress(grpc.RpcError):
            for message in stream:
                told.put((time.perf_counter(), message))

    threading.Thread(target=read, daemon=True).start()
    return told


def _told(told: "queue.Queue[tuple[float, bytes]]", id: str) -> float:
    limit = time.monotonic() + _END_SECONDS
    while time.monotonic() < limit:
        with contextlib.suppress(queue.Empty):
            at, message = told.get(timeout=1)
            if b"/tasks/exit" in message and id.encode() in message:
                return at
    raise SystemExit(f"bench: the end of {id} was not told within {_END_SECONDS:.0f} s")


def _pids(peer: Peer, ids: list[str]) -> dict[str, int]:
    full = ["ctr", "--address", str(peer.socket), "--namespace", peer.namespace, "tasks", "ls"]
    printed = subprocess.run(full, capture_output=True, text=True, check=True, timeout=60).stdout
    fields = [line.split() for line in printed.splitlines()[1:]]
    return {words[0]: int(words[1]) for words in fields if words[0] in ids}


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
