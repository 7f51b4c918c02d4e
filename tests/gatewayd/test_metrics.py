"""Where the gateway shows metrics, and what becomes of what services say."""

import asyncio
import socket
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from carina import config as constellation
from carina.errors import FailedPrecondition, InvalidArgument
from carina.meter import Counter, Family, Histogram, Kind, Sample
from carina.rpc.metrics import Process
from gatewayd import config, exposition
from support.registry import free_port


def _read(tmp_path: Path, address: str) -> config.Config:
    path = tmp_path / "config.toml"
    path.write_text(f"[metrics]\naddress = {address}\n")
    return config.read(constellation.load(path))


def test_nothing_listens_unless_it_is_wanted(tmp_path: Path) -> None:
    """There is no address by default; an empty one is none."""
    assert _read(tmp_path, '""').metrics == ()
    assert _read(tmp_path, '["127.0.0.1:1338", "unix:///run/m.sock"]').metrics == (
        "127.0.0.1:1338",
        "unix:///run/m.sock",
    )
    assert config.loopback("[::1]:1338") == ("::1", 1338)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ('"0.0.0.0:1338"', "'0.0.0.0:1338' can be reached from other machines"),
        ('"192.168.1.1:1"', "can be reached from other machines"),
        ('"127.0.0.1"', "is not valid: expected"),
        ('"127.0.0.1:99999"', "is not valid: expected"),
        ('"example.org:1338"', "is not valid: expected"),
        ('"unix://relative"', "address 'unix://relative' is not valid"),
        ("1338", "metrics.address must be an address"),
        ('""\nport = 1', "metrics.port is not a setting"),
    ],
)
def test_addresses_that_can_not_be_are_refused(tmp_path: Path, address: str, said: str) -> None:
    """Metrics tell much and ask nobody who they are: only this machine gets them."""
    with pytest.raises(InvalidArgument, match=said):
        _read(tmp_path, address)


def _processes() -> list[Process]:
    counter, times = Counter("a_total", "As.", "kind"), Histogram("b_seconds", "Bs.", "kind")
    counter.add("x", amount=3)
    counter.add('quo"ted\nline')
    for seconds in (0.0001, 0.3, 1000.0):
        times.observe(seconds, "x")
    container = Family("container_pids_current", "Pids.", Kind.GAUGE, [Sample("", (("container_id", "c"),), 2)])
    families = [counter.family(), times.family()]
    return [
        Process(service="one", families=families),
        Process(service="two", families=[*families, container]),
        Process(service="three", error="it is silent"),
    ]


async def _get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


async def test_the_page_is_what_prometheus_reads(tmp_path: Path) -> None:
    """Families of several services are one, with the service as label; labels are escaped; buckets add up."""
    port, path = free_port(), tmp_path / "m.sock"

    async def collect() -> list[Process]:
        return _processes()

    async with exposition.serve([f"127.0.0.1:{port}", f"unix://{path}"], collect, gid=None):
        status, text = await _get(port, "/v1/metrics")
        missing, _ = await _get(port, "/")
        mode = path.stat().st_mode & 0o777
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
            async with session.get("http://localhost/v1/metrics") as answer:
                same = await answer.text()
    families = {family.name: family for family in text_string_to_metric_families(text)}

    assert (status, missing, mode, same) == (200, 404, 0o660, text)
    assert not path.exists()
    assert families["a"].type == "counter"
    assert {(sample.labels["service"], sample.labels["kind"], sample.value) for sample in families["a"].samples} == {
        (service, *counted) for service in ("one", "two") for counted in (("x", 3.0), ('quo"ted\nline', 1.0))
    }
    times = {
        sample.labels.get("le", sample.name): sample.value
        for sample in families["b_seconds"].samples
        if sample.labels["service"] == "one"
    }
    assert (times["0.0005"], times["0.25"], times["0.5"], times["60"], times["+Inf"]) == (1, 1, 2, 2, 3)
    assert (times["b_seconds_count"], times["b_seconds_sum"]) == (3, 1000.3001)
    assert families["container_pids_current"].samples[0].labels == {"container_id": "c"}


async def test_an_address_in_use_is_named(tmp_path: Path) -> None:
    """A port or a socket where somebody listens is refused in a sentence."""

    async def collect() -> list[Process]:
        return []

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidArgument, match=rf"metrics can't be served at 127.0.0.1:{port}: address already in"):
            async with exposition.serve([f"127.0.0.1:{port}"], collect, gid=None):
                pass
    server = await asyncio.start_unix_server(lambda reader, writer: writer.close(), tmp_path / "m.sock")
    async with server:
        with pytest.raises(FailedPrecondition, match=r"m\.sock is in use"):
            async with exposition.serve([f"unix://{tmp_path}/m.sock"], collect, gid=None):
                pass
