"""Counts of calls that were served or passed on, under the names of gRPC's Prometheus middleware, as containerd's.

grpc_server_started_total  grpc_server_handled_total  grpc_server_handling_seconds
"""

from collections.abc import Iterator
from typing import Final

from grpclib.const import Cardinality, Status

from carina import meter
from carina.meter import Distribution, Family, Kind, Sample

MAX_METHODS: Final = 512
"""Methods that are counted by name. A client can make names up where calls are passed on."""
_OTHER: Final = "/other/other"
_TYPES: Final = {
    Cardinality.UNARY_UNARY: "unary",
    Cardinality.UNARY_STREAM: "server_stream",
    Cardinality.STREAM_UNARY: "client_stream",
    Cardinality.STREAM_STREAM: "bidi_stream",
}
_CODES: Final = {
    status: "OK" if status is Status.OK else "".join(part.capitalize() for part in status.name.split("_"))
    for status in Status
}
"""As Go's codes.Code says them: `NotFound`. One is spelled differently there."""
_CODES[Status.CANCELLED] = "Canceled"


class Method:
    """The counts of one method."""

    __slots__ = ("_codes", "_path", "_started", "_time", "_type")

    def __init__(self, path: str, type: str) -> None:
        self._path = path
        self._type = type
        self._started = 0
        self._codes: dict[Status, int] = {}
        self._time = Distribution()

    def started(self) -> None:
        self._started += 1

    def handled(self, status: Status, seconds: float) -> None:
        self._codes[status] = self._codes.get(status, 0) + 1
        self._time.observe(seconds)

    @property
    def used(self) -> bool:
        return self._started > 0

    @property
    def labels(self) -> meter.Labels:
        service, _, method = self._path[1:].rpartition("/")
        return ("grpc_type", self._type), ("grpc_service", service), ("grpc_method", method)

    def samples(self) -> tuple[Sample, list[Sample], list[Sample]]:
        labels = self.labels
        handled = [Sample("", (*labels, ("grpc_code", _CODES[status])), count) for status, count in self._codes.items()]
        return Sample("", labels, self._started), handled, list(self._time.samples(labels))


_methods: Final[dict[str, Method]] = {}


def method(path: str, cardinality: Cardinality | None = None) -> Method:
    """The counts of the method of this path. What is passed on undecoded has no cardinality: it counts as unary."""
    found = _methods.get(path)
    if found is None:
        if len(_methods) >= MAX_METHODS:
            path = _OTHER
        found = _methods.setdefault(path, Method(path, _TYPES[cardinality or Cardinality.UNARY_UNARY]))
    return found


def _families() -> Iterator[Family]:
    read = [found.samples() for found in list(_methods.values()) if found.used]
    yield Family("grpc_server_started_total", "Calls that began.", Kind.COUNTER, [started for started, _, _ in read])
    yield Family(
        "grpc_server_handled_total",
        "Calls that ended, whatever their status.",
        Kind.COUNTER,
        [sample for _, handled, _ in read for sample in handled],
    )
    yield Family(
        "grpc_server_handling_seconds",
        "How long calls took.",
        Kind.HISTOGRAM,
        [sample for _, _, times in read for sample in times],
    )


meter.source(_families)
