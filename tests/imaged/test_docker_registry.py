"""Pulls from Debian's docker-registry: over TLS, with passwords, tokens, mirrors, and with what breaks on the way."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from carina.digest import Digest
from carina.errors import PermissionDenied, Unauthenticated, Unavailable
from carina.platforms import Platform
from carina.transfer import Access, Credentials, CredentialSource, Store
from imaged.fetcher import Pace
from imaged.patience import Retry
from imaged.transfer import Timeouts, Transfers
from support.certificates import Authority
from support.image import Image, build, layer, tar
from support.link import link
from support.pulls import World
from support.registry import Registry
from support.tokens import TokenServer

HOST = Platform(os="linux", architecture="amd64")
BIG = layer(tar({"big": bytes(range(256)) * 12_000}), "")
"""About three megabytes, and as many in the registry."""
PASSWORD = "$2b$05$abcdefghijklmnopqrstuuZFBUbfXoM8LFiPx8LYlO/sXZB/Cwk3K"


def given(username: str = "", secret: str = "", header: str = "") -> CredentialSource:
    async def source(host: str, challenges: list[str]) -> Credentials:
        return Credentials(username=username, secret=secret, header=header)

    return source


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def image() -> Image:
    return build(layers=[BIG])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, image: Image) -> Path:
    """A store with `some/image:1`."""
    directory = tmp_path_factory.mktemp("store")
    with Registry(directory) as registry:
        registry.push("some/image", "1", image)
    return directory


@pytest.fixture(scope="module")
def secure(store: Path, authority: Authority) -> Iterator[Registry]:
    """TLS by an authority that nobody knows, and a password."""
    certificate, key = authority.issue("server")
    htpasswd = store / "htpasswd"
    htpasswd.write_text(f"user:{PASSWORD}\n")
    tls = {"certificate": str(certificate), "key": str(key)}
    with Registry(store, tls=tls, auth={"htpasswd": {"realm": "test", "path": str(htpasswd)}}) as registry:
        yield registry


def configured(directory: Path, registry: str, text: str) -> Path:
    (directory / registry).mkdir()
    (directory / registry / "hosts.toml").write_text(text)
    return directory


async def fetch(transfers: Transfers, reference: str, credentials: CredentialSource | None = None) -> None:
    into = Store(name=reference, platforms=(HOST,))
    await transfers.fetch(reference, into, access=Access(credentials=credentials))


async def test_tls_and_a_password(
    world: World, secure: Registry, authority: Authority, image: Image, tmp_path: Path
) -> None:
    """With the authority in hosts.toml and the right password an image comes; each without the other is refused."""
    text = f'server = "https://{secure.host}"\nca = "{authority.certificate}"\n'
    transfers = world.transfers(configured(tmp_path, "private.test", text))
    reference = "private.test/some/image:1"

    with pytest.raises(Unauthenticated, match="asks for credentials, and there are none"):
        await fetch(transfers, reference)
    with pytest.raises(Unauthenticated, match="does not accept the credentials"):
        await fetch(transfers, reference, given("user", "wrong"))
    with pytest.raises(Unavailable, match=r"certificate that is not accepted: .*name the authority .* hosts\.toml"):
        await fetch(world.transfers(configured(tmp_path, "other.test", text.splitlines()[0])), "other.test/x:1")
    await fetch(transfers, reference, given("user", "pass"))

    assert world.images.images[reference].target.digest == image.digest


async def test_docker_s_certificate_directory(
    world: World, store: Path, authority: Authority, image: Image, tmp_path: Path
) -> None:
    """A registry that wants to see a certificate gets the one of `client.cert`, and is believed by `ca.crt`."""
    certificate, key = authority.issue("mutual")
    tls = {"certificate": str(certificate), "key": str(key), "clientcas": [str(authority.certificate)]}
    with Registry(store, tls=tls) as registry:
        directory = tmp_path / f"localhost_{registry.port}_"
        directory.mkdir()
        (directory / "ca.crt").write_bytes(authority.certificate.read_bytes())
        with pytest.raises(Unavailable, match=rf"registry {registry.host} "):
            await fetch(world.transfers(tmp_path), f"{registry.host}/some/image:1")

        mine, mine_key = authority.issue("client", names="DNS:client")
        (directory / "client.cert").write_bytes(mine.read_bytes())
        (directory / "client.key").write_bytes(mine_key.read_bytes())
        await fetch(world.transfers(tmp_path), f"{registry.host}/some/image:1")

    assert world.images.images[f"{registry.host}/some/image:1"].target.digest == image.digest


async def test_an_expired_certificate_is_named_and_not_tried_again(
    world: World, store: Path, authority: Authority, tmp_path: Path
) -> None:
    """An expired certificate ends a pull at once, and the sentence says who has to do something."""
    certificate, key = authority.issue("expired", expired=True)
    with Registry(store, tls={"certificate": str(certificate), "key": str(key)}) as registry:
        text = f'server = "https://{registry.host}"\nca = "{authority.certificate}"\n'
        transfers = world.transfers(configured(tmp_path, "late.test", text))
        with pytest.raises(Unavailable, match=r"certificate has expired; its operator has to renew it.*some/image\)$"):
            await fetch(transfers, "late.test/some/image:1")


async def test_plain_http_where_tls_is_expected_is_named(world: World, store: Path, tmp_path: Path) -> None:
    """A registry that speaks http is not mistaken for one that is down."""
    with Registry(store) as registry:
        text = f'server = "https://{registry.host}"\n'
        with pytest.raises(Unavailable, match=r"does not speak TLS .* plain http, that has to be asked for"):
            await fetch(world.transfers(configured(tmp_path, "plain.test", text)), "plain.test/some/image:1")


@pytest.fixture
async def tokens(authority: Authority) -> AsyncIterator[TokenServer]:
    certificate, key = authority.issue("tokens", rsa=True)
    server = TokenServer(certificate=certificate, key=key)
    app = web.Application()
    app.router.add_route("*", "/token", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.port = runner.addresses[0][1]
    yield server
    await runner.cleanup()


async def test_a_token_server(world: World, store: Path, tokens: TokenServer, image: Image) -> None:
    """A name with a password, or a refresh token alone, gets one token for the repository, which serves for all."""
    with Registry(store, auth=tokens.auth()) as registry:
        reference = f"{registry.host}/some/image:1"
        with pytest.raises(PermissionDenied, match=r"refuses a token \(401\); check the credentials"):
            await fetch(world.transfers(), reference, given("user", "wrong"))
        with pytest.raises(PermissionDenied, match="credentials may help"):
            await fetch(world.transfers(), reference)
        tokens.asked.clear()
        await fetch(world.transfers(), reference, given("user", "pass"))
        await fetch(World().transfers(), reference, given(secret="long-lived"))

    assert [request.method for request in tokens.asked] == ["GET", "POST"]
    assert tokens.asked[0].query.getall("scope") == ["repository:some/image:pull"]
    assert world.images.images[reference].target.digest == image.digest


async def test_mirrors_are_asked_in_order_and_passed_over(
    world: World, store: Path, secure: Registry, image: Image, tmp_path: Path
) -> None:
    """A mirror that is not there, one that refuses, and one that lacks the image are passed over in turn."""
    with Registry(tmp_path / "empty") as empty, Registry(store) as full:
        async with link(empty.port) as first, link(full.port) as second, link(full.port) as never:
            text = f'server = "http://{never.host}"\n[host."http://127.0.0.1:1"]\n'
            text += f'[host."https://{secure.host}"]\nskip_verify = true\n'
            text += f'[host."http://{first.host}"]\n[host."http://{second.host}"]\n'
            transfers = world.transfers(configured(tmp_path, "mirrored.test", text))
            await fetch(transfers, "mirrored.test/some/image:1")

    assert world.content.blobs[Digest(BIG.blob.digest)] == BIG.blob.data
    assert first.connections
    assert second.connections
    assert not never.connections


async def test_no_byte_comes_twice_when_the_registry_is_killed(world: World, store: Path, tmp_path: Path) -> None:
    """A registry that dies in the middle of a layer and comes back costs no more than the bytes that were missing."""
    registry = Registry(store)
    transfers = Transfers(world.transfers().stores, retry=Retry(attempts=200, first=0.02, longest=0.1))
    with registry:
        async with link(registry.port, rate=4e6) as slow, asyncio.TaskGroup() as group:
            slow.wait_for = BIG.blob.size // 3
            pulling = group.create_task(fetch(transfers, f"{slow.host}/some/image:1"), name="pull")
            async with asyncio.timeout(30):
                await slow.passed.wait()
            registry.kill()
            slow.cut()
            await asyncio.sleep(0.1)
            await asyncio.to_thread(registry.__enter__)
            await pulling

    assert world.content.blobs[Digest(BIG.blob.digest)] == BIG.blob.data
    # Documents and headers besides; what was on its way when the connection was cut has to come again.
    assert slow.received < BIG.blob.size + 600_000


async def test_a_cancelled_pull_is_gone_on_with(world: World, store: Path) -> None:
    """What a pull had when it was given up is not fetched again by the next one."""
    with Registry(store) as registry:
        async with link(registry.port, rate=4e6) as slow:
            slow.wait_for = BIG.blob.size // 2
            reference = f"{slow.host}/some/image:1"
            pulling = asyncio.create_task(fetch(world.transfers(), reference), name="pull")
            async with asyncio.timeout(30):
                await slow.passed.wait()
            pulling.cancel()
            await asyncio.wait([pulling])
            slow.cut()
            had = len(world.content.ingests[f"layer-{BIG.blob.digest}"])
            before = slow.received
            await fetch(world.transfers(), reference)
            await fetch(world.transfers(), reference)
        last, known = registry.served(BIG.blob.digest)[-1], len(registry.served(BIG.blob.digest))

    assert had > BIG.blob.size // 4
    assert last == (206, BIG.blob.size - had)
    assert known == 2
    assert slow.received - before < BIG.blob.size - had + 100_000
    assert world.leases.leases == {}


async def test_a_large_layer_over_slow_connections_comes_by_several(world: World, store: Path) -> None:
    """Ranges of one layer are read at once, put in order, and every byte comes once."""
    transfers = world.transfers()
    transfers.stores = replace(transfers.stores, pace=Pace(piece=200_000), downloads=4)
    with Registry(store) as registry:
        async with link(registry.port, rate=1e6) as slow:
            await fetch(transfers, f"{slow.host}/some/image:1")

    assert world.content.blobs[Digest(BIG.blob.digest)] == BIG.blob.data
    assert 2 <= slow.connections <= 5
    assert slow.received < BIG.blob.size + 100_000


async def test_a_slow_drip_is_given_up(world: World, store: Path) -> None:
    """A connection that brings fewer bytes than the least rate over the time of a stall is as good as none."""
    stores = replace(world.transfers().stores, pace=Pace(floor=1e6))
    transfers = Transfers(stores, retry=Retry(attempts=2, first=0.01), timeouts=Timeouts(stall=0.3))
    with Registry(store) as registry:
        async with link(registry.port, rate=100_000) as slow:
            with pytest.raises(Unavailable, match=r"bytes a second arrive, fewer than 1000000 \(2 attempts\)"):
                await fetch(transfers, f"{slow.host}/some/image:1")

    assert world.images.images == {}
