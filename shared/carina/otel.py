"""Spans recorded with OpenTelemetry, where `carina[otel]` is installed and the environment asks for it.

    OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318    OTLP over HTTP, with all the variables that its exporter reads
    OTEL_TRACES_EXPORTER=otlp|console|carina_file|none   console: on standard output
    CARINA_TRACES_FILE=/path                             for carina_file: a line of JSON for each span, appended
    OTEL_SDK_DISABLED=true                               nothing, whatever else is set

Without these nothing of OpenTelemetry is imported. Sampling and batching follow OTEL_TRACES_SAMPLER and OTEL_BSP_*.
"""

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from carina import __version__, tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

FLUSH_SECONDS: Final = 2.0
"""How long the end of a process may be held up by spans that are not exported yet."""
FILE: Final = "carina_file"
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")

log = logging.getLogger(__name__)


def start(name: str, environ: Mapping[str, str]) -> Callable[[], None]:
    """Record the spans of this process, the daemon `name`, if the environment says so. Returns what ends that."""
    wanted = _wanted(environ)
    if not wanted:
        return lambda: None
    try:
        return _install(name, wanted, environ)
    except ImportError:
        log.warning("traces are not exported: OpenTelemetry is not installed (pip install 'carina[otel]')")
    except Exception as error:
        log.warning("traces are not exported: %s", error)
    return lambda: None


def _wanted(environ: Mapping[str, str]) -> str:
    """The exporter's name; empty for none."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return ""
    default = "otlp" if any(environ.get(name) for name in _ENDPOINTS) else "none"
    wanted = environ.get("OTEL_TRACES_EXPORTER") or default
    return "" if wanted == "none" else wanted


def _install(name: str, exporter: str, environ: Mapping[str, str]) -> Callable[[], None]:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.namespace": "carina", "service.name": name, "service.version": __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter(exporter, environ)))
    tracing.install(_Recorder(provider.get_tracer("carina", __version__)))
    log.info("traces are exported with %s", exporter)

    def end() -> None:
        tracing.install(None)
        # An exporter whose collector is gone tries for long; nobody waits for that.
        ending = threading.Thread(target=provider.shutdown, name="end tracing", daemon=True)
        ending.start()
        ending.join(FLUSH_SECONDS)

    return end


def _exporter(name: str, environ: Mapping[str, str]) -> "SpanExporter":
    if name == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if name == FILE:
        path = environ.get("CARINA_TRACES_FILE")
        if not path:
            raise ValueError(f"OTEL_TRACES_EXPORTER={FILE} needs CARINA_TRACES_FILE")
        return _file_exporter(path)
    raise ValueError(f"OTEL_TRACES_EXPORTER {name!r} is not one of otlp, console, {FILE}, none")


def _file_exporter(path: str) -> "SpanExporter":
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class FileExporter(SpanExporter):
        """Lines of several processes don't mix: each batch is one write to a file opened for appending."""

        def export(self, spans: Sequence["ReadableSpan"]) -> SpanExportResult:
            text = "".join(json.dumps(_described(span)) + "\n" for span in spans)
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                try:
                    os.write(descriptor, text.encode())
                finally:
                    os.close(descriptor)
            except OSError as error:
                log.warning("traces can't be written to %s: %s", path, error.strerror)
                return SpanExportResult.FAILURE
            return SpanExportResult.SUCCESS

    return FileExporter()


def _described(span: "ReadableSpan") -> dict[str, Any]:
    own = span.get_span_context()
    assert own is not None
    return {
        "service": span.resource.attributes.get("service.name"),
        "name": span.name,
        "kind": span.kind.name.lower(),
        "trace": f"{own.trace_id:032x}",
        "span": f"{own.span_id:016x}",
        "parent": f"{span.parent.span_id:016x}" if span.parent is not None else "",
        "start": span.start_time,
        "end": span.end_time,
        "attributes": dict(span.attributes or {}),
        "error": span.status.description or "",
    }


class _Recorder:
    """`carina.tracing.Recorder`."""

    def __init__(self, tracer: "Tracer") -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context

        self._tracer = tracer
        self._trace = trace
        self._empty = Context()
        self._kinds = {
            "internal": trace.SpanKind.INTERNAL,
            "server": trace.SpanKind.SERVER,
            "client": trace.SpanKind.CLIENT,
        }

    def begin(
        self, name: str, role: tracing.Role, parent: str | None, attributes: Mapping[str, str | int]
    ) -> tracing.Span:
        trace, context = self._trace, self._empty
        match = _PARENT.fullmatch(parent) if parent else None
        if match is not None:
            above = trace.SpanContext(
                int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=trace.TraceFlags(int(match[3], 16))
            )
            context = trace.set_span_in_context(trace.NonRecordingSpan(above), context)
        made = self._tracer.start_span(name, context=context, kind=self._kinds[role], attributes=attributes)
        return _Span(made, trace.Status, trace.StatusCode.ERROR)


class _Span:
    """`carina.tracing.Span`."""

    __slots__ = ("_error", "_over", "_span", "_status", "traceparent")

    def __init__(self, span: "OtelSpan", status: Any, error: Any) -> None:
        own = span.get_span_context()
        self._span, self._status, self._error, self._over = span, status, error, False
        self.traceparent = f"00-{own.trace_id:032x}-{own.span_id:016x}-{int(own.trace_flags):02x}"

    def end(self, error: str = "") -> None:
        if self._over:
            return
        self._over = True
        if error:
            self._span.set_status(self._status(self._error, error))
        self._span.end()
