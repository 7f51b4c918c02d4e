"""What images' work spends its time on: the phases of a pull, as spans and as histograms."""

import contextlib
from collections.abc import Iterator
from typing import Final

from carina import meter, tracing

_SECONDS: Final = meter.histogram(
    "carina_image_phase_seconds", "How long resolving a name, fetching a layer and unpacking one took.", "phase"
)
_FAILED: Final = meter.counter("carina_image_phase_failures_total", "Phases that failed or were cancelled.", "phase")
FETCHED: Final = meter.counter("carina_image_fetched_bytes_total", "Bytes of the layers that were fetched.")


@contextlib.contextmanager
def phase(name: str, **attributes: str | int) -> Iterator[None]:
    """The block is a phase: `resolve`, `fetch` or `unpack`."""
    try:
        with tracing.span(name, **attributes), _SECONDS.time(name):
            yield
    except BaseException:
        _FAILED.add(name)
        raise
