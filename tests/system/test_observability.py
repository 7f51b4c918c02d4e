"""Seeing inside: the metrics of every service at one address, one trace over every hop, one request id in every log."""

import asyncio
import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from carina import context
from carina.client.client import Client
from carina.platforms import host
from support.constellation import Constellation
from support.registry import free_port

DAEMONS = ("contentd", "snapshotd-overlayfs", "snapshotd-native", "metadatad", "imaged", "taskd", "gatewayd")
TRACE, ABOVE = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
Samples = dict[str, list[tuple[dict[str, str], float]]]


class Observed(Constellation):
    """With its page of metrics, and spans and records in files."""

    port: int
    spans: Path

    def scrape(self) -> Samples:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/metrics", timeout=20) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            text = answer.read().decode()
        found: Samples = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found

    def pull(self, reference: str, call: context.Call) -> None:
        async def work() -> None:
            async with Client(self.address) as client:
                with context.use(call):
                    await client.transfer.pull(reference, unpack=[(host(), "overlayfs")], plain_http=True)

        asyncio.run(work())


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    port, spans = free_port(), tmp_path_factory.mktemp("spans") / "spans.jsonl"
    config = f'[metrics]\naddress = "127.0.0.1:{port}"\n[log]\nformat = "json"\nlevel = "debug"\n'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_TRACES_EXPORTER", "carina_file")
        patch.setenv("CARINA_TRACES_FILE", str(spans))
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        running = Observed(config=config, namespace=f"carina-seen-{os.getpid()}")
        running.port, running.spans = port, spans
        with running:
            yield running


def value(samples: Samples, metric: str, /, **labels: str) -> float:
    """The sum of the samples that have these labels."""
    found = [number for own, number in samples[metric] if labels.items() <= own.items()]
    assert found, (metric, labels, samples[metric])
    return sum(found)


def test_every_service_is_on_the_page(observed: Observed) -> None:
    """Each has its calls, their times, memory, processor time and descriptors there, with its name as a label."""
    observed.ctr("images", "ls")
    samples = observed.scrape()

    for name in DAEMONS:
        assert value(samples, "carina_up", name=name) == 1, name
        assert value(samples, "process_resident_memory_bytes", service=name) > 1 << 20
        assert value(samples, "process_open_fds", service=name) > 3
        assert value(samples, "process_start_time_seconds", service=name) > time.time() - 3600
    listed = {"grpc_service": "containerd.services.images.v1.Images", "grpc_method": "List"}
    for name in ("gatewayd", "metadatad"):
        assert value(samples, "grpc_server_handled_total", service=name, grpc_code="OK", **listed) >= 1
        assert value(samples, "grpc_server_handling_seconds_count", service=name, **listed) >= 1
        assert value(samples, "grpc_server_handling_seconds_bucket", service=name, le="+Inf", **listed) >= 1
    assert value(samples, "carina_backend_up", name="overlayfs") == 1


def test_work_is_counted(observed: Observed, reference: str) -> None:
    """Phases of pulls, collections, records and the event log are on the page, by the numbers of what was done."""
    before = observed.scrape()
    observed.pull(reference, context.Call(namespace=observed.namespace))
    samples = observed.scrape()

    for phase in ("resolve", "fetch", "unpack"):
        assert value(samples, "carina_image_phase_seconds_count", phase=phase, service="imaged") >= 1
    assert value(samples, "carina_image_fetched_bytes_total") > 0
    assert value(samples, "carina_event_log_recorded_total") > value(before, "carina_event_log_recorded_total")

    observed.ctr("images", "rm", "--sync", reference)
    samples = observed.scrape()
    assert value(samples, "containerd_gc_collections_total", status="success") >= 1
    assert value(samples, "containerd_gc_gc_seconds_count") >= 1
    assert value(samples, "carina_gc_removed_total", type="content") >= 4


@pytest.mark.parametrize("runtime", ["io.containerd.runc.v2", "io.containerd.carina.v1"])
def test_containers_have_containerds_metrics(observed: Observed, reference: str, runtime: str) -> None:
    """A running container's control group is on the page under containerd's names, and gone with the container."""
    observed.ctr("images", "pull", "--plain-http", reference)
    observed.ctr("run", "-d", "--runtime", runtime, reference, "measured", "sleep", "1000")
    samples = observed.scrape()
    own = {"container_id": "measured", "namespace": observed.namespace}

    assert value(samples, "container_pids_current", **own) == 1
    if "container_memory_usage_usage_bytes" in samples:  # version 1 of the control groups
        assert value(samples, "container_memory_usage_usage_bytes", **own) > 0
        assert value(samples, "container_cpu_total_nanoseconds", **own) > 0
    else:
        assert value(samples, "container_memory_usage_bytes", **own) > 0
        assert value(samples, "container_cpu_usage_usec_microseconds", **own) > 0
    assert value(samples, "carina_tasks", phase="live") == 1

    observed.clean_namespace()
    assert "container_pids_current" not in observed.scrape()


def test_a_stalled_service_loses_only_its_own_metrics(observed: Observed) -> None:
    """While one stands still the page comes in time, with everybody else's; afterwards it is there again."""
    pid = next(
        int(line.split()[2])
        for line in observed.carina("status", *observed.paths).output.splitlines()
        if line.startswith("contentd")
    )
    os.kill(pid, signal.SIGSTOP)
    try:
        samples = observed.scrape()
    finally:
        os.kill(pid, signal.SIGCONT)

    assert value(samples, "carina_up", name="contentd") == 0
    assert {name for name in DAEMONS if value(samples, "carina_up", name=name)} == set(DAEMONS) - {"contentd"}
    limit = time.monotonic() + 20
    while not value(observed.scrape(), "carina_up", name="contentd"):
        assert time.monotonic() < limit
        time.sleep(0.2)


def _spans(observed: Observed, trace: str, wanted: set[str]) -> list[dict[str, Any]]:
    """The spans of a trace, once all these services have written theirs, and each span is below another."""
    limit = time.monotonic() + 20
    while True:
        lines = observed.spans.read_text().splitlines() if observed.spans.exists() else []
        found = [span for span in map(json.loads, lines) if span["trace"] == trace]
        places = {span["span"] for span in found} | {ABOVE}
        whole = all(span["parent"] in places for span in found) and any(span["parent"] == ABOVE for span in found)
        if wanted <= {span["service"] for span in found} and whole:
            return found
        assert time.monotonic() < limit, sorted({(span["service"], span["name"]) for span in found})
        time.sleep(0.1)


def test_a_clients_trace_goes_over_every_hop(observed: Observed, reference: str) -> None:
    """A pull is one trace, the client's, with gateway, imaged, metadatad, contentd and the snapshotter below it."""
    call = context.Call(namespace=observed.namespace, trace=f"00-{TRACE}-{ABOVE}-01", request="a-request-of-mine")
    observed.pull(reference, call)
    spans = _spans(observed, TRACE, {"gatewayd", "imaged", "metadatad", "contentd", "snapshotd-overlayfs"})

    by_id = {span["span"]: span for span in spans}
    roots = [span for span in spans if span["parent"] not in by_id]
    assert {(span["service"], span["parent"]) for span in roots} == {("gatewayd", ABOVE)}
    assert {"resolve", "fetch", "unpack"} <= {span["name"] for span in spans if span["service"] == "imaged"}
    written = next(span for span in spans if span["service"] == "contentd" and span["kind"] == "server")
    path = [written["service"]]
    while (written := by_id.get(written["parent"], {})) and written:
        if written["service"] != path[-1]:
            path.append(written["service"])
    assert path == ["contentd", "metadatad", "imaged", "gatewayd"]
    observed.clean_namespace()


def test_one_request_id_is_in_the_logs_of_every_service(observed: Observed, reference: str) -> None:
    """A client's request id is in the records of each service that its pull reaches, with namespace and method."""
    observed.pull(reference, context.Call(namespace=observed.namespace, request="find-me-again"))
    lines = [line for line in observed.log.read_text().splitlines() if line.startswith("{")]
    records = [record for record in map(json.loads, lines) if record.get("request") == "find-me-again"]

    assert {"gatewayd", "imaged", "metadatad", "contentd", "snapshotd-overlayfs"} <= {
        record["service"] for record in records
    }
    method = "/containerd.services.transfer.v1.Transfer/Transfer"
    transfer = next(record for record in records if (record["service"], record["method"]) == ("gatewayd", method))
    assert transfer["namespace"] == observed.namespace
    assert transfer["peer"].startswith(f"pid={os.getpid()} ")
    observed.clean_namespace()


def test_nobodys_calls_are_in_no_trace(observed: Observed) -> None:
    """Services look after one another all the time, and no span tells of it; what a client asks is told."""
    observed.ctr("namespaces", "ls")
    limit = time.monotonic() + 20
    while True:
        spans = [json.loads(line) for line in observed.spans.read_text().splitlines()]
        listed = [span for span in spans if span["name"] == "containerd.services.namespaces.v1.Namespaces/List"]
        if any(span["service"] == "metadatad" and span["parent"] for span in listed):
            break
        assert time.monotonic() < limit
        time.sleep(0.1)

    assert [span for span in spans if span["name"] == "grpc.health.v1.Health/Check"] == []


def test_a_container_is_one_trace_down_to_its_shim(observed: Observed, reference: str) -> None:
    """Creating and starting a task shows the calls to the shim below taskd's own."""
    observed.ctr("images", "pull", "--plain-http", reference)
    observed.ctr("run", "--rm", reference, "traced", "true")
    limit = time.monotonic() + 20
    while True:
        spans = [json.loads(line) for line in observed.spans.read_text().splitlines()]
        shim = [span for span in spans if span["service"] == "taskd" and span["name"] == "shim Start"]
        if shim:
            break
        assert time.monotonic() < limit
        time.sleep(0.1)
    above = next(span for span in spans if span["span"] == shim[0]["parent"])

    assert above["name"] == "containerd.services.tasks.v1.Tasks/Start"
    observed.clean_namespace()
