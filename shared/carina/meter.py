"""What a process counts of itself: counters, histograms and gauges, kept as plain numbers until somebody asks.

The families of one process are in one place, since they are about the process. Counting costs about as much as
adding to a dictionary's value, and keeps nothing for each call; how it looks on the wire is `carina.rpc.metrics`.
Names follow Prometheus: a counter's ends in `_total`, a time is in seconds.
"""

import bisect
import contextlib
import enum
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Upper bounds of histograms, in seconds."""

Labels = tuple[tuple[str, str], ...]
"""Names and values."""


class Kind(enum.Enum):
    COUNTER = 1
    GAUGE = 2
    HISTOGRAM = 3


@dataclass(frozen=True, slots=True)
class Sample:
    suffix: str
    """What follows the family's name: empty, or `_bucket`, `_sum`, `_count` of a histogram."""
    labels: Labels
    value: float


@dataclass(frozen=True, slots=True)
class Family:
    name: str
    help: str
    kind: Kind
    samples: Sequence[Sample]


class Counter:
    """A number for each combination of labels; it only grows."""

    __slots__ = ("_values", "help", "labels", "name")

    def __init__(self, name: str, help: str, *labels: str) -> None:
        self.name, self.help, self.labels = name, help, labels
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def add(self, *values: str, amount: float = 1.0) -> None:
        """The values of the labels must be of a bounded number: names of our own, never what a peer made up."""
        self._values[values] = self._values.get(values, 0.0) + amount

    def family(self) -> Family:
        samples = [Sample("", tuple(zip(self.labels, key, strict=True)), value) for key, value in self._values.items()]
        return Family(self.name, self.help, Kind.COUNTER, samples)


class Distribution:
    """How long something took: the numbers behind one histogram."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds

    def samples(self, labels: Labels) -> Iterator[Sample]:
        total = 0
        for bound, count in zip((*BUCKETS, float("inf")), self.counts, strict=True):
            total += count
            text = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield Sample("_bucket", (*labels, ("le", text)), total)
        yield Sample("_sum", labels, self.sum)
        yield Sample("_count", labels, total)


class Histogram:
    """A distribution for each combination of labels."""

    __slots__ = ("_values", "help", "labels", "name")

    def __init__(self, name: str, help: str, *labels: str) -> None:
        self.name, self.help, self.labels = name, help, labels
        self._values: dict[tuple[str, ...], Distribution] = {}

    def observe(self, seconds: float, *values: str) -> None:
        found = self._values.get(values)
        if found is None:
            found = self._values[values] = Distribution()
        found.observe(seconds)

    @contextlib.contextmanager
    def time(self, *values: str) -> Iterator[None]:
        """Observe how long the block takes, however it ends."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.observe(time.monotonic() - begun, *values)

    def family(self) -> Family:
        samples = [
            sample
            for key, distribution in self._values.items()
            for sample in distribution.samples(tuple(zip(self.labels, key, strict=True)))
        ]
        return Family(self.name, self.help, Kind.HISTOGRAM, samples)


_sources: Final[list[Callable[[], Iterable[Family]]]] = []


def counter(name: str, help: str, *labels: str) -> Counter:
    made = Counter(name, help, *labels)
    _sources.append(lambda: (made.family(),))
    return made


def histogram(name: str, help: str, *labels: str) -> Histogram:
    made = Histogram(name, help, *labels)
    _sources.append(lambda: (made.family(),))
    return made


def source(families: Callable[[], Iterable[Family]]) -> None:
    """Have families read whenever somebody asks for the process's."""
    _sources.append(families)


def gauge(name: str, help: str, value: float, labels: Labels = ()) -> Family:
    """A family of one number that was just read."""
    return Family(name, help, Kind.GAUGE, (Sample("", labels, value),))


def total(name: str, help: str, value: float, labels: Labels = ()) -> Family:
    """A counter's family of one number that was just read."""
    return Family(name, help, Kind.COUNTER, (Sample("", labels, value),))


def families() -> list[Family]:
    """Everything that was counted in this process, and what the kernel says of it."""
    return [*(family for read in _sources for family in read() if family.samples), *_process()]


def _process() -> Iterator[Family]:
    """proc(5): stat and statm of this process, under the names that Prometheus' own clients use."""
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    seconds = (int(fields[11]) + int(fields[12])) / ticks
    yield total("process_cpu_seconds_total", "User and system time spent.", seconds)
    yield gauge("process_virtual_memory_bytes", "Virtual memory.", int(fields[20]))
    yield gauge("process_resident_memory_bytes", "Resident memory.", int(fields[21]) * page)
    yield gauge("process_start_time_seconds", "When the process began.", _boot_time() + int(fields[19]) / ticks)
    yield gauge("process_open_fds", "Open file descriptors.", len(os.listdir("/proc/self/fd")) - 1)
    yield gauge("process_threads", "Threads.", int(fields[17]))


def _boot_time() -> int:
    with open("/proc/stat") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("btime ")), 0)
