"""Diff of a small change on a large image: from an overlay's upper directory, by walking both trees, and containerd's.

Calls come from Google's C++ client. The walk is had from Carina by writing the same directories in other words.
"""

import os
import secrets
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from bench import large, peers
from bench.costs import run
from bench.images import whole_image
from bench.peers import Carina, Containerd, Peer, timed
from bench.snapshots import Caller
from carina.api.containerd.services.diff.v1 import DiffRequest
from carina.api.containerd.services.snapshots.v1 import (
    MountsResponse,
    PrepareSnapshotRequest,
    ViewSnapshotRequest,
)
from carina.digest import Digest
from carina.images.manifest import chain_ids
from carina.linux.mount import mounted
from carina.mount import Mount
from carina.rpc.codec import decode, encode
from carina.snapshots.client import mounts_from_wire, mounts_to_wire
from support.constellation import Constellation
from support.registry import Registry

_SECONDS: Final = 900.0


class Report(Protocol):
    def add(self, what: str, unit: str, ours: float, theirs: float | None = None) -> None: ...


def diffs(report: Report, registry: Registry) -> None:
    """Medians of BENCH_RUNS, in turns."""
    image = whole_image()
    reference = registry.push("bench/diffed", "1", image)
    top = str(chain_ids([Digest(layer.diff_id) for layer in image.layers])[-1])
    place = large.cache()
    place.mkdir(parents=True, exist_ok=True)
    with (
        peers.fresh_filesystem(place / "carina.img") as ours,
        peers.fresh_filesystem(place / "containerd.img") as theirs,
        peers.containerd(root=theirs / "containerd") as containerd,
    ):
        constellation = Constellation(namespace="bench")
        constellation.root = ours / "carina"
        with constellation:
            own, other = (_Changed(peer, reference, top) for peer in (Carina(constellation), containerd))
            figures: dict[str, list[float]] = {"quick": [], "walk": [], "theirs": []}
            for _ in range(int(os.environ.get("BENCH_RUNS", "3"))):
                figures["quick"].append(timed(own.diff))
                figures["walk"].append(timed(lambda: own.diff(walk=True)))
                figures["theirs"].append(timed(other.diff))
    median = {name: statistics.median(values) * 1000 for name, values in figures.items()}
    report.add("Diff of a small change on the large image", "ms", median["quick"], median["theirs"])
    report.add("  walking both trees", "ms", median["walk"], median["theirs"])


class _Changed:
    """A peer with the image, and a snapshot on it in which a few files are new, changed and gone."""

    def __init__(self, peer: Carina | Containerd, reference: str, top: str) -> None:
        _pull(peer, reference)
        self._socket = peer.socket
        snapshots = Caller(peer.socket)
        kept = {"containerd.io/gc.root": "bench"}
        key = secrets.token_hex(8)
        prepare = PrepareSnapshotRequest(snapshotter="overlayfs", key=key, parent=top, labels=kept)
        view = ViewSnapshotRequest(snapshotter="overlayfs", key=f"{key}-view", parent=top, labels=kept)
        self._upper = mounts_from_wire(decode(MountsResponse, snapshots.one("Prepare", prepare)).mounts)
        self._lower = mounts_from_wire(decode(MountsResponse, snapshots.one("View", view)).mounts)
        with mounted(self._upper) as tree:
            _change(tree)

    def diff(self, *, walk: bool = False) -> None:
        import grpc

        lower = _in_other_words(self._lower) if walk else self._lower
        request = DiffRequest(
            left=mounts_to_wire(lower),
            right=mounts_to_wire(self._upper),
            ref=secrets.token_hex(8),
            labels={"containerd.io/gc.root": "bench"},
        )
        with grpc.insecure_channel(f"unix:{self._socket}") as channel:
            call: Any = channel.unary_unary("/containerd.services.diff.v1.Diff/Diff")
            call(encode(request), metadata=[("containerd-namespace", "bench")], timeout=_SECONDS)


def _pull(peer: Peer, reference: str) -> None:
    command = ["ctr", "--address", str(peer.socket), "--namespace", "bench"]
    run([*command, "images", "pull", "--plain-http", reference])


def _change(tree: Path) -> None:
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    (tree / "new").write_bytes(os.urandom(100_000))
    for path in files[:: max(1, len(files) // 20)]:
        path.write_bytes(b"changed")
    files[len(files) // 3].unlink()


def _in_other_words(mounts: Sequence[Mount]) -> list[Mount]:
    [mount] = mounts
    options = tuple(option.replace("lowerdir=/", "lowerdir=//", 1) for option in mount.options)
    return [Mount(type=mount.type, source=mount.source, options=options)]
