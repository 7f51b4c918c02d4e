"""Spans for OpenTelemetry: exported where the environment asks for it, and not even loaded where it does not."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from carina import context, otel, tracing

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
WORK = """
import os
from carina import context, log, otel, tracing
log.start("testd")
end = otel.start("testd", os.environ)
with context.use(context.Call(trace=os.environ.get("PARENT"))):
    with tracing.span("outer", size=3):
        try:
            with tracing.span("inner"):
                raise ValueError("it is broken")
        except ValueError:
            pass
end()
"""


def _run(code: str, **environ: str) -> str:
    """What a process says that runs the code, on its standard error stream."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_spans_are_lines_of_json_in_a_file(tmp_path: Path) -> None:
    """Each span is there with its place in the caller's trace, its attributes and its error."""
    path = tmp_path / "spans"
    _run(WORK, OTEL_TRACES_EXPORTER=otel.FILE, CARINA_TRACES_FILE=str(path), PARENT=PARENT)
    inner, outer = map(json.loads, path.read_text().splitlines())

    assert (outer["service"], outer["name"], outer["trace"], outer["parent"]) == (
        "testd",
        "outer",
        "4bf92f3577b34da6a3ce929d0e0e4736",
        "00f067aa0ba902b7",
    )
    assert (inner["name"], inner["trace"], inner["parent"]) == ("inner", outer["trace"], outer["span"])
    assert (outer["attributes"], outer["error"]) == ({"size": 3}, "")
    assert inner["error"] == "it is broken"
    assert outer["start"] <= inner["start"] <= inner["end"] <= outer["end"]


def test_a_trace_that_is_none_begins_a_new_one(tmp_path: Path) -> None:
    """What a client sends as traceparent may be anything."""
    path = tmp_path / "spans"
    _run(WORK, OTEL_TRACES_EXPORTER=otel.FILE, CARINA_TRACES_FILE=str(path), PARENT="00-nonsense")
    inner, outer = map(json.loads, path.read_text().splitlines())

    assert outer["parent"] == ""
    assert inner["trace"] == outer["trace"]
    assert len(outer["trace"]) == 32


async def test_spans_go_to_a_collector_over_http() -> None:
    """OTLP's usual variable is enough; what is not sent yet when a process ends is sent then."""
    bodies: list[bytes] = []

    async def collect(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        return web.Response()

    application = web.Application()
    application.router.add_post("/v1/traces", collect)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
        said = await asyncio.to_thread(_run, WORK, **endpoint)
    finally:
        await runner.cleanup()

    assert "traces are exported with otlp" in said
    assert len(bodies) == 1
    assert all(word in bodies[0] for word in (b"testd", b"outer", b"inner", b"it is broken"))


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER 'zipkin' is not one of otlp, console"),
        ({"OTEL_TRACES_EXPORTER": otel.FILE}, "needs CARINA_TRACES_FILE"),
    ],
)
def test_what_can_not_be_exported_is_said(environ: dict[str, str], said: str) -> None:
    """A wrong setting costs the traces and a line in the log, and nothing else."""
    text = _run(WORK, **environ)

    assert "traces are not exported: " in text
    assert said in text
    assert "Traceback" not in text


def test_a_collector_that_is_gone_holds_nobody_up() -> None:
    """A process ends within seconds though its spans can't be delivered."""
    _run(WORK, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")


@pytest.mark.parametrize(
    "environ",
    [{}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}],
)
def test_nothing_is_loaded_that_is_not_wanted(environ: dict[str, str]) -> None:
    """Without the variables neither OpenTelemetry nor what the page of metrics takes is in memory."""
    code = WORK + "import sys, gatewayd.daemon, contentd.daemon\n"
    code += "found = {'opentelemetry', 'prometheus_client', 'aiohttp', 'requests'} & set(sys.modules)\n"
    code += "assert not found, found\n"

    assert _run(code, **environ) == ""


def test_without_a_recorder_the_call_stays_as_it_is() -> None:
    """A span that nobody records changes nothing for the calls made in it."""
    with context.use(context.Call(trace=PARENT)) as call:
        with tracing.span("x"):
            assert context.current() is call
