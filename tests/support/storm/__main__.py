"""`make faults DURATION=seconds SEED=n`: rounds of faults until the time is over.

The last line is `rounds N, acknowledged N, lost N, stuck N, leaked N`.
The exit status is 1 unless the last three are 0.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
from pathlib import Path

import uvloop

from support.registry import Registry
from support.storm.apart import Apart, earlier, upgrade
from support.storm.nemesis import KILLS, OURS, Kind
from support.storm.peers import Ours, Peer, Theirs
from support.storm.storm import Report, Storm


def main() -> None:
    parser = argparse.ArgumentParser(prog="faults", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--duration", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peer", choices=("carina", "containerd"), default="carina")
    parser.add_argument("--kind", help="only faults whose function has this in its name")
    parser.add_argument("--upgrade-from", metavar="REVISION", help="begin with the services of a commit, upgrade them")
    parser.add_argument("--results", type=Path, help="where the rounds are written, as JSON")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("faults: this needs root: it mounts file systems, runs containers and ends processes")
    report = run(options)
    print(report.line())
    sys.exit(report.failed)


def run(options: argparse.Namespace) -> Report:
    kinds: list[Kind] = [
        kind for kind in (OURS if options.peer == "carina" else KILLS) if (options.kind or "") in kind.__name__
    ]
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="storm-registry-")))
        registry = stack.enter_context(Registry(scratch))
        if options.upgrade_from:
            tree = stack.enter_context(earlier(options.upgrade_from))
            peer: Peer = stack.enter_context(Apart(tree))
            kinds = [upgrade]
        else:
            peer = stack.enter_context(Ours() if options.peer == "carina" else Theirs())
        storm = Storm(peer, registry, seed=options.seed, kinds=kinds, loud=True)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(storm.rounds(seconds=options.duration))
        if options.results:
            storm.report.write(
                options.results / f"{peer.name}{'-upgrade' if options.upgrade_from else ''}-{options.seed}.json"
            )
        if storm.report.failed:
            keep = Path(tempfile.gettempdir()) / f"storm-{peer.name}-{options.seed}.log"
            keep.write_bytes(peer.log.read_bytes() if peer.log.exists() else b"")
            print(f"the log is in {keep}")
    return storm.report


if __name__ == "__main__":
    main()
