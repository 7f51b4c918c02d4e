"""Snapshots alone: their records and directories, without anything in them, and mounting a stack of them.

Calls come from Google's C++ client, so that no client of ours is measured along. Either peer has a fresh ext4 to
itself. Three servers of ours: the gateway with the default durability, the gateway without it, which is what
containerd 1.6 does, and snapshotd bare.
"""

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from bench import peers
from bench.peers import timed
from carina.api.containerd.services.snapshots.v1 import (
    CommitSnapshotRequest,
    MountsRequest,
    MountsResponse,
    PrepareSnapshotRequest,
    RemoveSnapshotRequest,
)
from carina.linux.mount import mounted
from carina.rpc.codec import decode, encode
from carina.snapshots.client import mounts_from_wire
from support.constellation import Constellation

COUNT: Final = int(os.environ.get("BENCH_SNAPSHOTS", "1000"))
LAYERS: Final = 100
ROUNDS: Final = 3
IN_FLIGHT: Final = 8
_KEPT: Final = {"containerd.io/gc.root": "bench"}
_NOT_DURABLE: Final = "[services.snapshots.overlayfs]\n[snapshots.overlayfs]\ndurable = false\n"


class Report(Protocol):
    def add(self, what: str, unit: str, ours: float, theirs: float | None = None) -> None: ...


class Caller:
    """The Snapshots service at a socket."""

    def __init__(self, socket: Path) -> None:
        import grpc

        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._metadata = [("containerd-namespace", "bench")]

    def one(self, method: str, message: Any) -> bytes:
        answer: bytes = self._call(method)(encode(message), metadata=self._metadata, timeout=60)
        return answer

    def many(self, method: str, messages: Sequence[Any], *, in_flight: int) -> None:
        call = self._call(method)
        for start in range(0, len(messages), in_flight):
            under_way = [
                call.future(encode(message), metadata=self._metadata, timeout=60)
                for message in messages[start : start + in_flight]
            ]
            for answer in under_way:
                answer.result()

    def _call(self, method: str) -> Any:
        return self._channel.unary_unary(f"/containerd.services.snapshots.v1.Snapshots/{method}")


def snapshots(report: Report) -> None:
    with _volumes() as (ours, theirs), peers.containerd(root=theirs / "containerd") as containerd:
        there = Caller(containerd.socket)
        for what, config in (("", ""), (", not durable", _NOT_DURABLE)):
            constellation = Constellation(config=config)
            constellation.root = ours / ("volatile" if config else "durable")
            with constellation:
                carina = Caller(constellation.socket)
                _records(report, carina, there, suffix=what)
                if config:
                    bare = Caller(constellation.state / "snapshotd-overlayfs.sock")
                    _records(report, bare, there, suffix=f"{what}, snapshotd alone")
                else:
                    _stack(report, carina, there)


@contextmanager
def _volumes() -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        images = (Path(directory, "carina.img"), Path(directory, "containerd.img"))
        with peers.fresh_filesystem(images[0]) as ours, peers.fresh_filesystem(images[1]) as theirs:
            yield ours, theirs


def _records(report: Report, ours: Caller, theirs: Caller, *, suffix: str) -> None:
    for in_flight in (1, IN_FLIGHT):
        figures = [
            [_round(caller, f"{suffix}-{in_flight}-{number}", in_flight) for caller in (ours, theirs)]
            for number in range(ROUNDS)
        ]
        for step, name in enumerate(("Prepare", "Commit", "Remove")):
            a, b = (statistics.median(pair[side][step] for pair in figures) * 1000 for side in (0, 1))
            report.add(f"{name} {COUNT} snapshots, {in_flight} at a time{suffix}", "ms", a, b)


def _round(caller: Caller, prefix: str, in_flight: int) -> tuple[float, ...]:
    """Seconds for preparing, committing and removing them all."""
    base, name = f"{prefix}-base", "overlayfs"
    caller.one("Prepare", PrepareSnapshotRequest(snapshotter=name, key=f"{base}-key", labels=_KEPT))
    caller.one("Commit", CommitSnapshotRequest(snapshotter=name, key=f"{base}-key", name=base, labels=_KEPT))
    numbers = range(COUNT)
    steps: tuple[tuple[str, Callable[[int], Any]], ...] = (
        (
            "Prepare",
            lambda n: PrepareSnapshotRequest(snapshotter=name, key=f"{prefix}-{n}", parent=base, labels=_KEPT),
        ),
        (
            "Commit",
            lambda n: CommitSnapshotRequest(snapshotter=name, key=f"{prefix}-{n}", name=f"{prefix}-c{n}", labels=_KEPT),
        ),
        ("Remove", lambda n: RemoveSnapshotRequest(snapshotter=name, key=f"{prefix}-c{n}")),
    )
    spent = []
    for method, message in steps:
        messages = [message(number) for number in numbers]
        spent.append(timed(lambda: caller.many(method, messages, in_flight=in_flight)))  # noqa: B023
    return tuple(spent)


def _stack(report: Report, ours: Caller, theirs: Caller) -> None:
    """Ask for the mounts of a tall stack, and perform them: `carina.linux.mount` does so for both."""
    for caller in (ours, theirs):
        parent = ""
        for number in range(LAYERS):
            key, name = f"stack-{number}", f"layer-{number}"
            caller.one("Prepare", PrepareSnapshotRequest(snapshotter="overlayfs", key=key, parent=parent, labels=_KEPT))
            caller.one("Commit", CommitSnapshotRequest(snapshotter="overlayfs", key=key, name=name, labels=_KEPT))
            parent = name
        caller.one("Prepare", PrepareSnapshotRequest(snapshotter="overlayfs", key="top", parent=parent, labels=_KEPT))

    def mounts(caller: Caller) -> bytes:
        return caller.one("Mounts", MountsRequest(snapshotter="overlayfs", key="top"))

    def mount(caller: Caller) -> None:
        with mounted(mounts_from_wire(decode(MountsResponse, mounts(caller)).mounts)):
            pass

    for what, work in ((f"Mounts of a stack of {LAYERS} layers", mounts), ("  and mounting and unmounting it", mount)):
        pairs = [(timed(lambda: work(ours)), timed(lambda: work(theirs))) for _ in range(30)]  # noqa: B023
        report.add(what, "us", *(statistics.median(pair[side] for pair in pairs) * 1e6 for side in (0, 1)))
