"""Metrics from the files of control groups, version 1: `io.containerd.cgroups.v1.Metrics`."""

import os
import re
from collections.abc import Mapping
from typing import Any, Final

from shimd.cgroup import number, read, table
from shimd.wire import STRING, UINT, Schema

TYPE: Final = "io.containerd.cgroups.v1.Metrics"
_TICKS: Final = 10**9 // os.sysconf("SC_CLK_TCK")
_STAT: Final = (
    *("cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback", "pgpgin", "pgpgout", "pgfault", "pgmajfault"),
    *("inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable"),
    *("hierarchical_memory_limit", "hierarchical_memsw_limit"),
    *("total_cache", "total_rss", "total_rss_huge", "total_mapped_file", "total_dirty", "total_writeback"),
    *("total_pgpgin", "total_pgpgout", "total_pgfault", "total_pgmajfault"),
    *("total_inactive_anon", "total_active_anon", "total_inactive_file", "total_active_file", "total_unevictable"),
)
"""Names in memory.stat, in the order of the message's fields."""
_ENTRY: Final[Schema] = {1: ("limit", UINT), 2: ("usage", UINT), 3: ("max", UINT), 4: ("failcnt", UINT)}
_ENTRIES: Final = {"usage": "memory", "swap": "memory.memsw", "kernel": "memory.kmem", "kernel_tcp": "memory.kmem.tcp"}
_MEMORY: Final[Schema] = {
    **{index: (name, UINT) for index, name in enumerate(_STAT, 1)},
    **{index: (name, _ENTRY) for index, name in enumerate(_ENTRIES, 33)},
}
_HUGETLB: Final[Schema] = {1: ("usage", UINT), 2: ("max", UINT), 3: ("failcnt", UINT), 4: ("pagesize", STRING)}
_PIDS: Final[Schema] = {1: ("current", UINT), 2: ("limit", UINT)}
_USAGE: Final[Schema] = {1: ("total", UINT), 2: ("kernel", UINT), 3: ("user", UINT), 4: ("per_cpu", [UINT])}
_THROTTLE: Final[Schema] = {1: ("periods", UINT), 2: ("throttled_periods", UINT), 3: ("throttled_time", UINT)}
_CPU: Final[Schema] = {1: ("usage", _USAGE), 2: ("throttling", _THROTTLE)}
_DEVICE: Final[Schema] = {
    1: ("op", STRING),
    2: ("device", STRING),
    3: ("major", UINT),
    4: ("minor", UINT),
    5: ("value", UINT),
}
_BLKIO: Final[Schema] = {1: ("io_service_bytes_recursive", [_DEVICE]), 2: ("io_serviced_recursive", [_DEVICE])}
_OOM: Final[Schema] = {1: ("oom_kill_disable", UINT), 2: ("under_oom", UINT), 3: ("oom_kill", UINT)}
METRICS: Final[Schema] = {
    1: ("hugetlb", [_HUGETLB]),
    2: ("pids", _PIDS),
    3: ("cpu", _CPU),
    4: ("memory", _MEMORY),
    5: ("blkio", _BLKIO),
    9: ("memory_oom_control", _OOM),
}
_DEVICE_LINE: Final = re.compile(r"^(\d+):(\d+) (\w+) (\d+)$", re.MULTILINE)


def measure(paths: Mapping[str, str]) -> dict[str, Any]:
    """What there is, by the controllers that there are."""
    found: dict[str, Any] = {}
    if "pids" in paths:
        limit = read(paths["pids"], "pids.max").strip()
        current = number(paths["pids"], "pids.current")
        found["pids"] = {"current": current, "limit": int(limit) if limit.isdigit() else 0}
    if "cpuacct" in paths or "cpu" in paths:
        found["cpu"] = _cpu(paths.get("cpuacct", ""), paths.get("cpu", ""))
    if "memory" in paths:
        found["memory"] = _memory(paths["memory"])
        found["memory_oom_control"] = table(paths["memory"], "memory.oom_control")
    if "blkio" in paths:
        found["blkio"] = {
            name: _devices(read(paths["blkio"], f"blkio.throttle.{name}"))
            for name in ("io_service_bytes_recursive", "io_serviced_recursive")
        }
    if "hugetlb" in paths:
        found["hugetlb"] = _huge_pages(paths["hugetlb"])
    return found


def _cpu(accounting: str, scheduler: str) -> dict[str, Any]:
    ticks, throttled = table(accounting, "cpuacct.stat"), table(scheduler, "cpu.stat")
    return {
        "usage": {
            "total": number(accounting, "cpuacct.usage"),
            "kernel": ticks.get("system", 0) * _TICKS,
            "user": ticks.get("user", 0) * _TICKS,
            "per_cpu": [int(word) for word in read(accounting, "cpuacct.usage_percpu").split()],
        },
        "throttling": {
            "periods": throttled.get("nr_periods", 0),
            "throttled_periods": throttled.get("nr_throttled", 0),
            "throttled_time": throttled.get("throttled_time", 0),
        },
    }


def _memory(directory: str) -> dict[str, Any]:
    found: dict[str, Any] = dict(table(directory, "memory.stat"))
    for name, prefix in _ENTRIES.items():
        found[name] = {
            "limit": number(directory, f"{prefix}.limit_in_bytes"),
            "usage": number(directory, f"{prefix}.usage_in_bytes"),
            "max": number(directory, f"{prefix}.max_usage_in_bytes"),
            "failcnt": number(directory, f"{prefix}.failcnt"),
        }
    return found


def _devices(text: str) -> list[dict[str, Any]]:
    return [
        {"op": op, "device": _device(f"{major}:{minor}"), "major": int(major), "minor": int(minor), "value": int(value)}
        for major, minor, op, value in _DEVICE_LINE.findall(text)
    ]


def _device(numbers: str) -> str:
    try:
        return f"/dev/{os.path.basename(os.readlink(f'/sys/dev/block/{numbers}'))}"
    except OSError:
        return ""


def _huge_pages(directory: str) -> list[dict[str, Any]]:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    sizes = [name.split(".")[1] for name in names if re.fullmatch(r"hugetlb\.\w+\.usage_in_bytes", name)]
    return [
        {
            "usage": number(directory, f"hugetlb.{size}.usage_in_bytes"),
            "max": number(directory, f"hugetlb.{size}.max_usage_in_bytes"),
            "failcnt": number(directory, f"hugetlb.{size}.failcnt"),
            "pagesize": size,
        }
        for size in sizes
    ]
