"""Metrics of containers from their shims, under the names that containerd gives them, and of taskd itself.

The names are those of containerd's task monitor: `container_`, the value's name, its unit; which there are depends on
the version of the control groups.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from carina import context, meter
from carina.errors import CarinaError, NotFound
from carina.meter import Family, Kind, Labels, Sample
from taskd import rpc
from taskd.registry import Registry
from taskd.task import Phase, Task

STATS_SECONDS: Final = 1.5
"""How long a shim may take; containerd gives it two seconds."""
_AT_ONCE: Final = 32
_PAGES: Final = {"pg_pg_in": "pgpgin", "pg_pg_out": "pgpgout", "pg_fault": "pgfault", "pg_maj_fault": "pgmajfault"}
"""Fields of version 1 whose metrics are called as the kernel calls them."""
_ENTRIES: Final = ("usage", "swap", "kernel", "kernel_tcp")
_MEMORY1: Final = (
    *("cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback", *_PAGES),
    *("inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable"),
)
_MEMORY2: Final = (
    *("usage", "usage_limit", "swap_usage", "swap_limit", "file_mapped", "file_dirty", "file_writeback"),
    *("pgactivate", "pgdeactivate", "pgfault", "pgmajfault", "pglazyfree", "pgrefill", "pglazyfreed", "pgscan"),
    *("pgsteal", "inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable", "anon", "file"),
    *("kernel_stack", "slab", "sock", "shmem", "anon_thp", "slab_reclaimable", "slab_unreclaimable"),
    *("workingset_refault", "workingset_activate", "workingset_nodereclaim", "thp_fault_alloc", "thp_collapse_alloc"),
)
_BLKIO: Final[Mapping[str, str]] = {
    "io_merged_recursive": "total",
    "io_queued_recursive": "total",
    "io_service_bytes_recursive": "bytes",
    "io_service_time_recursive": "total",
    "io_serviced_recursive": "total",
    "io_time_recursive": "total",
    "sectors_recursive": "total",
}

Value = tuple[str, float, Labels]
"""A metric's name without `container_`, its value, and its labels beside those of the container."""

log = logging.getLogger(__name__)


def version1(found: Any) -> Iterator[Value]:
    """The values of an `io.containerd.cgroups.v1.Metrics`."""
    if found.pids is not None:
        yield "pids_limit", found.pids.limit, ()
        yield "pids_current", found.pids.current, ()
    if found.cpu is not None:
        yield from _cpu1(found.cpu)
    if found.memory is not None:
        yield from _memory1(found.memory)
    if found.memory_oom_control is not None:
        yield "memory_oom_total", found.memory_oom_control.oom_kill, ()
    for page in found.hugetlb:
        labels = (("page", page.pagesize),)
        yield "hugetlb_usage_bytes", page.usage, labels
        yield "hugetlb_failcnt_total", page.failcnt, labels
        yield "hugetlb_max_bytes", page.max, labels
    if found.blkio is not None:
        for name, unit in _BLKIO.items():
            for entry in getattr(found.blkio, name):
                device = (("device", entry.device), ("major", str(entry.major)), ("minor", str(entry.minor)))
                yield f"blkio_{name}_{unit}", entry.value, (("op", entry.op), *device)


def _cpu1(cpu: Any) -> Iterator[Value]:
    if cpu.usage is not None:
        for name in ("total", "kernel", "user"):
            yield f"cpu_{name}_nanoseconds", getattr(cpu.usage, name), ()
        for number, value in enumerate(cpu.usage.per_cpu):
            yield "per_cpu_nanoseconds", value, (("cpu", str(number)),)
    if cpu.throttling is not None:
        yield "cpu_throttle_periods_total", cpu.throttling.periods, ()
        yield "cpu_throttled_periods_total", cpu.throttling.throttled_periods, ()
        yield "cpu_throttled_time_nanoseconds", cpu.throttling.throttled_time, ()


def _memory1(memory: Any) -> Iterator[Value]:
    for name in _MEMORY1:
        shown = _PAGES.get(name, name)
        yield f"memory_{shown}_bytes", getattr(memory, name), ()
        yield f"memory_total_{shown}_bytes", getattr(memory, f"total_{name}"), ()
    yield "memory_hierarchical_memory_limit_bytes", memory.hierarchical_memory_limit, ()
    yield "memory_hierarchical_memsw_limit_bytes", memory.hierarchical_swap_limit, ()
    for name in _ENTRIES:
        entry, shown = getattr(memory, name), name.replace("_", "")
        if entry is not None:
            yield f"memory_{shown}_failcnt_total", entry.failcnt, ()
            for value in ("limit", "max", "usage"):
                yield f"memory_{shown}_{value}_bytes", getattr(entry, value), ()


def version2(found: Any) -> Iterator[Value]:
    """The values of an `io.containerd.cgroups.v2.Metrics`."""
    if found.pids is not None:
        yield "pids_limit", found.pids.limit, ()
        yield "pids_current", found.pids.current, ()
    if found.cpu is not None:
        for name in ("usage", "user", "system", "throttled"):
            yield f"cpu_{name}_usec_microseconds", getattr(found.cpu, f"{name}_usec"), ()
        yield "cpu_nr_periods_total", found.cpu.nr_periods, ()
        yield "cpu_nr_throttled_total", found.cpu.nr_throttled, ()
    if found.memory is not None:
        for name in _MEMORY2:
            yield f"memory_{name}_bytes", getattr(found.memory, name), ()
    if found.memory_events is not None:
        yield "memory_oom_total", found.memory_events.oom, ()
    for entry in found.io.usage if found.io is not None else ():
        labels = (("major", str(entry.major)), ("minor", str(entry.minor)))
        for name, unit in (("rbytes", "bytes"), ("wbytes", "bytes"), ("rios", "total"), ("wios", "total")):
            yield f"io_{name}_{unit}", getattr(entry, name), labels


_READERS: Final[Mapping[int, Callable[[Any], Iterator[Value]]]] = {1: version1, 2: version2}


async def containers(registry: Registry) -> list[Family]:
    """What the shims measure now. One that does not answer in time leaves its containers out."""
    limit = asyncio.Semaphore(_AT_ONCE)
    families: dict[str, list[Sample]] = {}

    async def measure(task: Task) -> None:
        async with limit:
            try:
                if task.shim is None:
                    return
                with context.within(namespace=task.bundle.namespace), context.deadline(STATS_SECONDS):
                    version, found = rpc.cgroup_metrics(await task.shim.stats(task.id))
            except CarinaError as error:
                if not isinstance(error, NotFound):
                    log.debug("task %s/%s: no metrics: %s", *task.key, error)
                return
        own = (("container_id", task.id), ("namespace", task.bundle.namespace), ("runtime", task.runtime))
        for name, value, labels in _READERS[version](found):
            families.setdefault(f"container_{name}", []).append(Sample("", (*own, *labels), value))

    live = [task for _, task in sorted(registry.tasks.items()) if task.phase is Phase.LIVE]
    async with asyncio.TaskGroup() as group:
        for task in live:
            group.create_task(measure(task), name=f"metrics {task.id}")
    return [Family(name, _help(name), Kind.GAUGE, samples) for name, samples in sorted(families.items())]


def _help(name: str) -> str:
    return f"As the container's control group says: {name.removeprefix('container_').replace('_', ' ')}."


def own(registry: Registry, pending: int) -> Iterable[Family]:
    """What taskd says of itself."""
    counts: dict[str, int] = {}
    for task in registry.tasks.values():
        counts[task.phase.name.lower()] = counts.get(task.phase.name.lower(), 0) + 1
    samples = [Sample("", (("phase", phase),), count) for phase, count in sorted(counts.items())]
    yield Family("carina_tasks", "Tasks, by what is being done with them.", Kind.GAUGE, samples)
    yield meter.gauge("carina_outbox_events", "Events of tasks that wait for metadatad.", pending)
