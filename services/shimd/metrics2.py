"""Metrics from the files of control groups, version 2: `io.containerd.cgroups.v2.Metrics`."""

import os
import re
from typing import Any, Final

from shimd.cgroup import number, read, table
from shimd.wire import STRING, UINT, Schema

TYPE: Final = "io.containerd.cgroups.v2.Metrics"
_STAT: Final = (
    *("anon", "file", "kernel_stack", "slab", "sock", "shmem", "file_mapped", "file_dirty", "file_writeback"),
    *("anon_thp", "inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable"),
    *("slab_reclaimable", "slab_unreclaimable", "pgfault", "pgmajfault", "workingset_refault"),
    *("workingset_activate", "workingset_nodereclaim", "pgrefill", "pgscan", "pgsteal", "pgactivate"),
    *("pgdeactivate", "pglazyfree", "pglazyfreed", "thp_fault_alloc", "thp_collapse_alloc"),
)
"""Names in memory.stat, in the order of the message's fields."""
_SIZES: Final = {
    "usage": "memory.current",
    "usage_limit": "memory.max",
    "swap_usage": "memory.swap.current",
    "swap_limit": "memory.swap.max",
    "max_usage": "memory.peak",
    "swap_max_usage": "memory.swap.peak",
}
_EVENTS: Final = ("low", "high", "max", "oom", "oom_kill", "oom_group_kill")
_CPU: Final = ("usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec")
_BURSTS: Final = ("nr_bursts", "burst_usec")
_IO: Final = ("rbytes", "wbytes", "rios", "wios")


def _numbers(*names: str, first: int = 1) -> Schema:
    return {index: (name, UINT) for index, name in enumerate(names, first)}


_HUGETLB: Final[Schema] = {1: ("current", UINT), 2: ("max", UINT), 3: ("pagesize", STRING), 4: ("failcnt", UINT)}
METRICS: Final[Schema] = {
    1: ("pids", _numbers("current", "limit")),
    2: ("cpu", {**_numbers(*_CPU), **_numbers(*_BURSTS, first=8)}),
    4: ("memory", _numbers(*_STAT, *_SIZES)),
    6: ("io", {1: ("usage", [_numbers("major", "minor", *_IO)])}),
    7: ("hugetlb", [_HUGETLB]),
    8: ("memory_events", _numbers(*_EVENTS)),
}
_IO_LINE: Final = re.compile(r"^(\d+):(\d+)((?: \w+=\d+)+)$", re.MULTILINE)


def measure(directory: str) -> dict[str, Any]:
    """What there is; a controller that is not enabled has no files, and counts nothing."""
    found: dict[str, Any] = {
        "pids": {"current": number(directory, "pids.current"), "limit": number(directory, "pids.max")},
        "cpu": table(directory, "cpu.stat"),
    }
    if os.path.exists(os.path.join(directory, "memory.current")):
        statistics = dict(table(directory, "memory.stat"))
        for name, file in _SIZES.items():
            statistics[name] = number(directory, file)
        found["memory"] = statistics
        found["memory_events"] = table(directory, "memory.events")
    found["io"] = {"usage": _devices(read(directory, "io.stat"))}
    found["hugetlb"] = _huge_pages(directory)
    return found


def _devices(text: str) -> list[dict[str, int]]:
    found = []
    for major, minor, rest in _IO_LINE.findall(text):
        values = {name: int(value) for name, _, value in (pair.partition("=") for pair in rest.split())}
        found.append({"major": int(major), "minor": int(minor), **{name: values.get(name, 0) for name in _IO}})
    return found


def _huge_pages(directory: str) -> list[dict[str, Any]]:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    sizes = [name.split(".")[1] for name in names if re.fullmatch(r"hugetlb\.\w+\.current", name)]
    return [
        {
            "current": number(directory, f"hugetlb.{size}.current"),
            "max": number(directory, f"hugetlb.{size}.max"),
            "failcnt": table(directory, f"hugetlb.{size}.events").get("max", 0),
            "pagesize": size,
        }
        for size in sizes
    ]
