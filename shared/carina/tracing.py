"""Spans: what a process did for a call, and for how long, if somebody records it.

A trace's identity travels with every call as W3C `traceparent`, whether or not anybody records spans. Where a recorder
is installed (`carina.otel`), each span takes its place in it, so that what is called from there is below that span.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal, Protocol

from carina import context

Role = Literal["internal", "server", "client"]


class Span(Protocol):
    @property
    def traceparent(self) -> str:
        """What calls made within it carry."""

    def end(self, error: str = "") -> None:
        """It is over; `error` says what went wrong, if anything. Only the first end counts."""


class Recorder(Protocol):
    def begin(self, name: str, role: Role, parent: str | None, attributes: Mapping[str, str | int]) -> Span:
        """A span below the one that `parent`, a traceparent, names; of a new trace without one."""


_recorder: Recorder | None = None


def install(recorder: Recorder | None) -> None:
    """Have the spans of this process recorded, or no longer."""
    global _recorder
    _recorder = recorder


def recorder() -> Recorder | None:
    """None, as usual: then nothing is spent on spans."""
    return _recorder


def unrecorded() -> str:
    """A traceparent that asks for no recording: for what a process does on nobody's behalf, like probes.

    Without one, whoever is called would begin a trace.
    """
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-00"


@contextlib.contextmanager
def span(name: str, **attributes: str | int) -> Iterator[None]:
    """Record the block as a span, with the calls made in it below it. An error passes through."""
    if _recorder is None:
        yield
        return
    call = context.current()
    made = _recorder.begin(name, "internal", call.trace, attributes)
    error = ""
    try:
        with context.use(replace(call, trace=made.traceparent)):
            yield
    except BaseException as caught:
        error = str(caught) or type(caught).__name__
        raise
    finally:
        made.end(error)
