"""Bad weather between us and a registry: each failure is survived, or ends in a sentence that says what to do."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from carina.digest import Digest
from carina.errors import DataLoss, InvalidArgument, ResourceExhausted, Unavailable
from carina.platforms import Platform
from carina.transfer import Store
from imaged.fetcher import Pace
from imaged.patience import Retry, Transient, pause, retry_after
from imaged.proxies import Proxies
from imaged.transfer import Transfers
from support.image import build, layer, tar
from support.link import link
from support.pulls import Hostile, World, span

HOST = Platform(os="linux", architecture="amd64")
BIG = layer(tar({"big": bytes(range(256)) * 4096}), "")
PIECE = 100_000


async def pull(transfers: Transfers, reference: str) -> None:
    await transfers.fetch(reference, Store(name=reference, platforms=(HOST,)))


def in_pieces(world: World) -> Transfers:
    """Transfers that read this small layer in ranges, as if it were a large one."""
    transfers = world.transfers()
    object.__setattr__(transfers.stores, "pace", Pace(piece=PIECE))
    return transfers


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("17", 17), (" 5 ", 5), ("", 0), ("-1", 0), ("soon", 0), ("1.5", 0), ("٣", 0), ("9" * 50, 999_999_999)],
)
def test_retry_after_in_seconds(text: str, seconds: float) -> None:
    """A number of seconds is taken, anything else is no wish at all."""
    assert retry_after(text) == seconds


def test_retry_after_as_a_date() -> None:
    """A date is the time until then, and one in the past is now."""
    then = datetime.now(UTC) + timedelta(seconds=3600)

    assert 3500 < retry_after(format_datetime(then, usegmt=True)) <= 3600
    assert retry_after("Fri, 01 Jan 1999 00:00:00 GMT") == 0


@given(st.text())
def test_any_retry_after_is_a_number(text: str) -> None:
    """Whatever a registry says there, it is a time that can be compared."""
    assert retry_after(text) >= 0


@given(st.integers(1, 10_000), st.floats(0, 1e6))
def test_pauses_are_bounded_and_never_too_short(attempt: int, asked: float) -> None:
    """A pause grows to its limit, and is never shorter than the registry wants."""
    found = Retry().pause(attempt, asked)

    assert asked <= found <= max(10.0, asked * 1.1)


async def test_a_registry_that_wants_a_long_pause_is_left_alone() -> None:
    """Who is asked to wait longer than is reasonable gives up at once, and says for how long."""
    error = Transient("registry r limits the rate")
    error.wait, error.exhausted = 3600, True
    began = time.monotonic()

    with pytest.raises(ResourceExhausted, match="limits the rate; it asks to be tried again in 3600 s"):
        await pause(Retry(), 1, error)
    assert time.monotonic() - began < 30


async def test_what_a_registry_says_is_passed_on(world: World, hostile: Hostile) -> None:
    """The message in the body of a refusal is part of the sentence, on one line and not without end."""
    reference = hostile.put(build())

    async def answer(request: web.Request) -> web.Response:
        message = "You have reached\nyour \x1b[31mlimit " + "x" * 1000
        return web.json_response({"errors": [{"code": "TOOMANYREQUESTS", "message": message}]}, status=429)

    hostile.answers["latest"] = answer
    hostile.objects["latest"] = ("text/plain", b"")
    with pytest.raises(ResourceExhausted, match=r"limits the rate of requests: tag latest") as caught:
        await pull(world.transfers(), reference)

    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 600


async def test_a_name_that_is_not_known_is_not_asked_for_again(world: World) -> None:
    """DNS that knows no such name ends a pull at once, with the name in the sentence."""
    with pytest.raises(Unavailable, match=r"registry none\.invalid can't be reached: its name") as caught:
        await pull(world.transfers(), "none.invalid/some/image:1")

    assert "repository some/image" in str(caught.value)


@pytest.mark.parametrize("at", ["latest", "index", "manifest", "config", "layer"])
async def test_a_reset_in_each_phase_is_survived(world: World, hostile: Hostile, at: str) -> None:
    """A connection that is reset once, in whatever phase, costs one more attempt."""
    image = build(layers=[BIG])
    reference = hostile.put(image)
    assert image.config is not None
    names = {
        "latest": "latest",
        "index": image.digest,
        "manifest": image.manifests[0].digest,
        "config": image.config.digest,
        "layer": BIG.blob.digest,
    }
    resets = 0

    async def answer(request: web.Request) -> web.Response | None:
        nonlocal resets
        if resets:
            return None
        resets += 1
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    hostile.answers[names[at]] = answer
    await pull(world.transfers(), reference)

    assert resets == 1
    assert list(world.images.images) == [reference]


async def test_wrong_bytes_of_a_mirror_are_fetched_elsewhere(world: World, hostile: Hostile, tmp_path: Path) -> None:
    """A mirror with other bytes than the manifest names is passed over for that content, documents and layers."""
    image = build(layers=[BIG])
    hostile.put(image)
    manifest = image.manifests[0]

    async def lie(request: web.Request) -> web.Response | None:
        if "ns" not in request.query:
            return None
        if request.path.endswith(BIG.blob.digest):
            return web.Response(body=bytes(BIG.blob.size))
        if request.path.endswith(manifest.digest):
            return web.Response(body=b" " * manifest.size, headers={"Content-Type": manifest.media_type})
        return None

    hostile.answers["*"] = lie
    (tmp_path / hostile.host).mkdir()
    text = f'server = "http://{hostile.host}"\n[host."http://localhost:{hostile.port}"]\n'
    (tmp_path / hostile.host / "hosts.toml").write_text(text)
    await pull(world.transfers(tmp_path), f"{hostile.host}/some/image:latest")

    assert world.content.blobs[Digest(BIG.blob.digest)] == BIG.blob.data
    asked = [request.query.get("ns") for request in hostile.requests if request.path.endswith(BIG.blob.digest)]
    assert asked == [hostile.host, None]


@pytest.fixture
async def slowed(hostile: Hostile) -> AsyncIterator[str]:
    """A reference over a link so slow that several connections are used."""
    reference = hostile.put(build(layers=[BIG]))
    async with link(hostile.port, rate=1e6) as slow:
        yield reference.replace(hostile.host, slow.host)


async def test_a_registry_that_ignores_ranges_is_read_once(world: World, hostile: Hostile, slowed: str) -> None:
    """Where the first range is answered with everything, everything is taken, and nothing asked for again."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=BIG.blob.data)

    hostile.answers[BIG.blob.digest] = answer
    await pull(in_pieces(world), slowed)

    assert world.content.blobs[Digest(BIG.blob.digest)] == BIG.blob.data
    assert sum(request.path.endswith(BIG.blob.digest) for request in hostile.requests) == 1


async def test_ranges_that_change_or_overlap_are_found_out(world: World, hostile: Hostile, slowed: str) -> None:
    """Ranges of two different things, under two ETags, make no layer; nothing of them stays."""

    async def answer(request: web.Request) -> web.Response:
        start, end = span(request, BIG.blob.size)
        data = BIG.blob.data if start < PIECE else bytes(BIG.blob.size)
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}", "ETag": f'"{start < PIECE}"'}
        return web.Response(status=206, body=data[start : min(end + 50, len(data))], headers=headers)

    hostile.answers[BIG.blob.digest] = answer
    with pytest.raises(DataLoss, match=f"the bytes of {BIG.blob.digest} are not those"):
        await pull(in_pieces(world), slowed)

    assert world.content.ingests == {}
    assert world.images.images == {}


async def test_one_range_that_fails_for_good_ends_the_pull(world: World, hostile: Hostile, slowed: str) -> None:
    """A range that can't be had is an error, the other ones are given up, and what came before it is kept."""

    async def answer(request: web.Request) -> web.Response | None:
        start, _ = span(request, BIG.blob.size)
        return web.Response(status=500) if start >= 5 * PIECE else None

    hostile.answers[BIG.blob.digest] = answer
    with pytest.raises(Unavailable, match=r"fails: blob .* of repository some/image \(500\) \(3 attempts\)"):
        await pull(in_pieces(world), slowed)

    kept = bytes(world.content.ingests[f"layer-{BIG.blob.digest}"])
    assert kept == BIG.blob.data[: len(kept)]
    assert 5 * PIECE <= len(kept) < BIG.blob.size
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("read bytes")]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://registry.test/v2/", "http://user:pass@secure.test:3128"),
        ("http://registry.test/v2/", "http://plain.test"),
        ("https://example.test/v2/", None),
        ("https://sub.example.test/v2/", None),
        ("https://notexample.test/v2/", "http://user:pass@secure.test:3128"),
        ("https://sub.dotted.test/", None),
        ("https://dotted.test/", "http://user:pass@secure.test:3128"),
        ("https://10.1.2.3/", None),
        ("https://11.1.2.3/", "http://user:pass@secure.test:3128"),
        ("https://port.test:5000/", None),
        ("https://port.test/", "http://user:pass@secure.test:3128"),
        ("https://[fd00::1]:5000/", None),
        ("http://localhost:5000/", None),
        ("http://127.0.0.5:5000/", None),
        ("https://[::1]/", None),
    ],
)
def test_proxies_of_the_environment(url: str, expected: str | None) -> None:
    """A proxy is used by the rules that Go's programs have, and never for this machine."""
    environment = {
        "HTTPS_PROXY": "http://user:pass@secure.test:3128",
        "http_proxy": "plain.test",
        "NO_PROXY": "example.test, .dotted.test,10.0.0.0/8,port.test:5000,[fd00::1]",
    }
    proxy = Proxies.of(environment).between(url)

    assert (str(proxy).rstrip("/") if proxy else None) == expected


def test_a_proxy_that_can_t_be_is_named_without_its_password() -> None:
    """What is no URL of an http proxy is refused, and what it says is not shown."""
    with pytest.raises(InvalidArgument, match="proxy for https is not the URL of an http proxy") as caught:
        Proxies.of({"HTTPS_PROXY": "socks5://user:secret@x"}).between("https://registry.test/")

    assert "secret" not in str(caught.value)


async def test_a_pull_goes_through_a_proxy(world: World, hostile: Hostile) -> None:
    """With HTTP_PROXY set, it is the proxy that is asked for a registry elsewhere."""
    reference = hostile.put(build()).replace(hostile.host, "registry.invalid")
    stores = world.transfers().stores
    transfers = Transfers(stores, proxies=Proxies.of({"HTTP_PROXY": f"http://{hostile.host}"}))
    await transfers.pull(reference, platforms=[HOST], plain_http=True)

    assert list(world.images.images) == [reference]
    assert {request.host for request in hostile.requests} == {"registry.invalid"}
