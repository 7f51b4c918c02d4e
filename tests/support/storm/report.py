"""Writes docs/reliability.md from the rounds in tests/faults/results, and from the table of known attacks.

PYTHONPATH=tests .venv/bin/python -m support.storm.report [DIRECTORY WITH NEW RESULTS]
"""

import collections
import json
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from support.storm.cases import CASES, where

ROOT: Final = Path(__file__).resolve().parents[3]
RESULTS: Final = ROOT / "tests" / "faults" / "results"
DOCUMENT: Final = ROOT / "docs" / "reliability.md"
HEAD: Final = """# Reliability

This page is written by `tests/support/storm/report.py` from results of `make faults`; nothing in the tables is typed.

A *round*: four clients in two namespaces pull, run, execute, import, write, label, lease, remove and collect at random,
something is hurt and made whole again, the clients stop, and everything is looked at:
what was acknowledged must be there, byte by byte; what was not is whole or absent; `carina check` finds nothing;
every container that was started is accounted for with its exit status; the log of events has no gap;
no shim, mount, control group, FIFO, bundle, temporary file or descriptor is left, and no traceback is in the log.

    sudo make faults DURATION=600 SEED=7           # all kinds in turn
    sudo make faults FAULTS="--kind kill_shim"     # one kind
    sudo make faults FAULTS="--peer containerd"    # the same clients and Debian's containerd
    sudo make faults FAULTS="--upgrade-from HEAD~1"
"""
WEAK: Final = """## What the rounds do not show

- On a full disk an event of a container can't be kept. Our shim tells it again until it can; containerd's shims give
  an event up after five attempts, so events of such a container may be missing. Exits are reported all the same.
- The row of an ingest that can't be removed on a full disk expires after a day, or goes with `carina check --repair`.
- Power cuts have tests of their own: `powerloss/test_power_cut.py` for the stores, and
  `powerloss/test_power_cut_constellation.py` for a constellation at work (`CARINA_POWER_CUTS=100` for more of them).
- The clock is not moved: the kernel has no namespace for the wall clock, and deadlines use the monotonic one.
- The file system is not made read-only, and no back end is slow or answers nonsense, in a round; a connection
  breaks only with one of its ends. See `imaged/test_weather.py`, `metadatad/test_stopped_backend.py`,
  `metadatad/test_breaker.py` and `metadatad/test_unfit_disk.py` for those.
"""


def rows(header: str, lines: list[str]) -> str:
    columns = header.count("|") - 1
    return "\n".join([header, "|" + "---|" * columns, *lines])


def load() -> dict[str, list[dict[str, Any]]]:
    """Reports by peer."""
    found = collections.defaultdict(list)
    for path in sorted(RESULTS.glob("*.json")):
        report = json.loads(path.read_text())
        found["upgrade" if "upgrade" in path.name else report["peer"]].append(report)
    return found


def by_kind(reports: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    for peer, some in sorted(reports.items()):
        kinds: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
        for report in some:
            for one in report["rounds"]:
                kinds[one["kind"]].append(one)
        for kind, rounds in sorted(kinds.items()):
            counts = [sum(len(one[what]) for one in rounds) for what in ("lost", "stuck", "leaked")]
            calls = sum(one["acknowledged"] for one in rounds)
            name = "carina, upgraded" if peer == "upgrade" else peer
            lines.append(f"| {name} | {kind} | {len(rounds)} | {calls} | {' | '.join(map(str, counts))} |")
    header = "| peer | fault | rounds | acknowledged | lost | stuck | leaked |"
    return rows(header, lines)


def away(reports: dict[str, list[dict[str, Any]]]) -> str:
    """How long each service did not answer when it was killed, and how slow it was when others were hurt."""
    hurt: dict[str, list[float]] = collections.defaultdict(list)
    calm: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for report in (*reports.get("carina", []), *reports.get("containerd", [])):
        for one in report["rounds"]:
            for name, seen in one["probes"].items():
                if "*" in one["hurt"] or name in one["hurt"]:
                    if one["kind"].startswith("kill"):
                        hurt[name].append(seen["away"])
                elif one["kind"] not in ("full disk", "full inode table"):
                    calm[name].update({int(bound): count for bound, count in seen["milliseconds"].items()})
    lines = []
    for name in sorted(calm | hurt):
        longest = f"{max(hurt[name]):.1f} s" if hurt.get(name) else "not killed"
        half, most = percentile(calm[name], 0.5), percentile(calm[name], 0.99)
        lines.append(f"| {name} | {len(hurt.get(name, []))} | {longest} | {half} | {most} |")
    return rows("| service | kills | longest away | unhurt: half within | 99 % within |", lines)


def percentile(counts: collections.Counter[int], part: float) -> str:
    total, seen = sum(counts.values()), 0
    for bound in sorted(counts):
        seen += counts[bound]
        if seen >= part * total:
            return f"{bound} ms"
    return ""


def memory(reports: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    for report in (*reports.get("carina", []), *reports.get("containerd", [])):
        for name, first in sorted(report["memory_first"].items()):
            last = report["memory_last"].get(name, "")
            lines.append(f"| {report['peer']} {report['seed']} | {len(report['rounds'])} | {name} | {first} | {last} |")
    return rows("| run, seed | rounds | process | MiB after the first round | MiB at the end |", lines)


def cases() -> str:
    there = where()
    lines = []
    for case in CASES:
        shown = ", ".join(f"`{there[name]}`: `{name}`" for name in case.tests if name in there)
        lines.append(f"| T{case.number} | {case.what} | {shown or f'does not apply: {case.why_not}'} |")
    return rows("| | known trouble | shown by |", lines)


def document() -> str:
    reports = load()
    seeds = ", ".join(f"{kind} {one['seed']}" for kind, some in sorted(reports.items()) for one in some)
    parts = [
        HEAD,
        f"## Faults\n\nSeeds: {seeds}.\n\n{by_kind(reports)}\n",
        f"## How long services are away\n\nProbes every 50 ms, straight at each service's socket.\n\n{away(reports)}\n",
        f"## Memory\n\nProportional set size.\n\n{memory(reports)}\n",
        WEAK,
        f"## Known attacks\n\n{cases()}\n",
    ]
    return "\n".join(parts)


def main() -> None:
    for directory in sys.argv[1:]:
        RESULTS.mkdir(exist_ok=True)
        for path in Path(directory).glob("*.json"):
            shutil.copy(path, RESULTS)
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(document())


if __name__ == "__main__":
    main()
