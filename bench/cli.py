"""The command line beside ctr: its start, and its list of images in small and large stores.

Both sides get the same images through their API. Each image has a manifest of its own, which both tools read to say how
large the image is; it has no layers, since nobody reads those.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from bench import load, peers
from bench.load import Client, Made
from bench.peers import Carina, Containerd, Peer, timed
from carina.api.containerd.services.images.v1 import CreateImageRequest, Image
from carina.api.containerd.types import Descriptor
from carina.rpc import codec
from support.constellation import BIN, Constellation
from support.image import OCI_CONFIG, OCI_MANIFEST

WRITERS: Final = 16


class Report(Protocol):
    def add(self, what: str, unit: str, ours: float, theirs: float | None = None) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    sizes: list[int] = field(default_factory=lambda: [10, 10_000])
    runs: int = 7


def options(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(prog="python -m bench cli", description=__doc__)
    default = Options()
    parser.add_argument("--sizes", type=int, nargs="+", default=default.sizes, help="images in the stores, ascending")
    parser.add_argument("--runs", type=int, default=default.runs, help="runs of which the median is taken")
    return Options(**vars(parser.parse_args(arguments)))


def cli(report: Report, arguments: list[str]) -> None:
    """Measure with a constellation and a containerd of its own."""
    chosen = options(arguments)
    with Constellation(namespace=Carina.namespace) as constellation, peers.containerd() as containerd:
        _measure(report, chosen, Carina(constellation), containerd)
        constellation.stop()  # or else it would remove every image before its directory goes


def _measure(report: Report, chosen: Options, carina: Carina, containerd: Containerd) -> None:
    ours, theirs = [str(BIN / "carina")], ["ctr"]
    _both(report, "start of the tool: --version", chosen, [*ours, "--version"], [*theirs, "--version"])
    _both(report, "start of the tool: --help", chosen, [*ours, "--help"], [*theirs, "--help"])
    ours += ["--address", f"unix://{carina.socket}", "--namespace", carina.namespace]
    theirs += ["--address", str(containerd.socket), "--namespace", containerd.namespace]
    _both(report, "start and one call: tasks ls", chosen, [*ours, "tasks", "ls"], [*theirs, "tasks", "ls"])
    held = 0
    for size in sorted(chosen.sizes):
        for peer in (carina, containerd):
            _fill(peer, range(held, size))
        held = size
        for flags in ([], ["-q"]):
            what = " ".join(("images ls", *flags, f"of {size} images"))
            command = ["images", "ls", *flags]
            _both(report, what, chosen, [*ours, *command], [*theirs, *command])


def _both(report: Report, what: str, chosen: Options, ours: list[str], theirs: list[str]) -> None:
    """Medians, taken in turns so that the machine's moods hit both."""
    pairs = [(timed(_ran(ours)), timed(_ran(theirs))) for _ in range(chosen.runs)]
    report.add(what, "ms", statistics.median(a for a, _ in pairs) * 1000, statistics.median(b for _, b in pairs) * 1000)


def _ran(command: list[str]) -> Callable[[], object]:
    return lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def _fill(peer: Peer, numbers: range) -> None:
    client = Client(peer.socket, peer.namespace, threads=WRITERS)
    try:
        load.build(client, numbers, make=image)
    finally:
        client.close()


def image(number: int) -> Made:
    """The image of a number: a manifest and a configuration, always the same bytes."""
    name = f"registry.example/cli/service-{number}:v1"
    config = json.dumps(
        {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}, "n": number}
    )
    data = config.encode()
    described = {"mediaType": OCI_CONFIG, "digest": _digest(data), "size": len(data)}
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": []}
    manifest = json.dumps(document).encode()
    held = {"containerd.io/gc.ref.content.config": _digest(data)}
    target = Descriptor(media_type=OCI_MANIFEST, digest=_digest(manifest), size=len(manifest))
    return Made(
        name=name,
        blobs=(load.write(data, {}), load.write(manifest, held)),
        record=codec.encode(CreateImageRequest(image=Image(name=name, target=target))),
    )


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
