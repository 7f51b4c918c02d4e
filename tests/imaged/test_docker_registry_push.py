"""Pushes into Debian's docker-registry over TLS, with passwords and tokens, and after it was killed in mid-layer."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from carina.errors import PermissionDenied, Unauthenticated
from carina.transfer import Access, Credentials, CredentialSource, Store
from imaged.patience import Retry
from imaged.transfer import Transfers
from support.certificates import Authority
from support.image import Image, build, layer, tar
from support.link import link
from support.pulls import World
from support.registry import Registry
from support.tokens import TokenServer

BIG = layer(tar({"big": os.urandom(4_000_000)}), "")
SMALL = layer(tar({"small": os.urandom(300_000)}), "")
NAME = "here.test/some/image:1"
PASSWORD = "$2b$05$abcdefghijklmnopqrstuuZFBUbfXoM8LFiPx8LYlO/sXZB/Cwk3K"


@pytest.fixture
def image(world: World) -> Image:
    """An image that is here as `NAME`."""
    made = build(layers=[SMALL, BIG])
    world.put(NAME, made)
    return made


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "authority").mkdir()
    return Authority(tmp_path / "authority")


def given(username: str, secret: str) -> CredentialSource:
    async def source(host: str, challenges: list[str]) -> Credentials:
        return Credentials(username=username, secret=secret)

    return source


async def push(transfers: Transfers, target: str, credentials: CredentialSource | None = None) -> None:
    await transfers.push(Store(name=NAME), target, access=Access(credentials=credentials))


async def test_tls_and_a_password(world: World, image: Image, authority: Authority, tmp_path: Path) -> None:
    """A push over TLS needs the right password, and what arrives is the image to the last byte."""
    certificate, key = authority.issue("server")
    htpasswd = tmp_path / "htpasswd"
    htpasswd.write_text(f"user:{PASSWORD}\n")
    auth = {"htpasswd": {"realm": "test", "path": str(htpasswd)}}
    tls = {"certificate": str(certificate), "key": str(key)}
    with Registry(tmp_path / "store", tls=tls, auth=auth) as registry:
        hosts = tmp_path / "hosts" / "private.test"
        hosts.mkdir(parents=True)
        (hosts / "hosts.toml").write_text(f'server = "https://{registry.host}"\nca = "{authority.certificate}"\n')
        transfers, target = world.transfers(hosts.parent), "private.test/pushed/image:1"
        with pytest.raises(Unauthenticated, match="asks for credentials, and there are none"):
            await push(transfers, target)
        with pytest.raises(Unauthenticated, match="does not accept the credentials"):
            await push(transfers, target, given("user", "wrong"))
        await push(transfers, target, given("user", "pass"))

        other = World()
        access = Access(credentials=given("user", "pass"))
        await other.transfers(hosts.parent).fetch(target, Store(name=target), access=access)
    assert other.images.images[target].target.digest == image.digest
    assert {layer.blob.digest for layer in image.layers} <= set(other.content.blobs)


@pytest.fixture
async def tokens(authority: Authority) -> AsyncIterator[TokenServer]:
    certificate, key = authority.issue("tokens", rsa=True)
    server = TokenServer(certificate=certificate, key=key)
    app = web.Application()
    app.router.add_route("*", "/token", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.port = runner.addresses[0][1]
    yield server
    await runner.cleanup()


async def test_a_token_server(world: World, image: Image, tokens: TokenServer, tmp_path: Path) -> None:
    """One token, for pulling and pushing in this repository, serves for all of a push; a wrong password gets none."""
    with Registry(tmp_path / "store", auth=tokens.auth()) as registry:
        target = registry.reference("pushed/image", "1")
        with pytest.raises(PermissionDenied, match=r"refuses a token \(401\); check the credentials"):
            await push(world.transfers(), target, given("user", "wrong"))
        tokens.asked.clear()
        await push(world.transfers(), target, given("user", "pass"))
        assert [request.query.getall("scope") for request in tokens.asked] == [["repository:pushed/image:pull,push"]]

        other = World()
        await other.transfers().fetch(target, Store(name=target), access=Access(credentials=given("user", "pass")))
    assert other.images.images[target].target.digest == image.digest


async def test_a_push_goes_on_when_the_registry_was_killed(world: World, image: Image, tmp_path: Path) -> None:
    """A registry that dies in the middle of a layer and comes back gets the image; layers it has aren't sent again.

    Of the layer under way it has a part, but refuses to go on with it (BLOB_UPLOAD_INVALID), so that comes again.
    """
    registry = Registry(tmp_path / "store")
    stores = replace(world.transfers().stores, uploads=1)
    transfers = Transfers(stores, retry=Retry(attempts=200, first=0.02, longest=0.1))
    with registry:
        async with link(registry.port, up_rate=4e6) as slow, asyncio.TaskGroup() as group:
            target = f"{slow.host}/pushed/image:1"
            pushing = group.create_task(push(transfers, target), name="push")
            async with asyncio.timeout(30):
                while slow.sent < SMALL.blob.size + BIG.blob.size // 2:
                    await asyncio.sleep(0.01)
            registry.kill()
            slow.cut()
            await asyncio.to_thread(registry.__enter__)
            await pushing
            sent = slow.sent

        other = World()
        await other.transfers().fetch(registry.reference("pushed/image", "1"), Store(name="x"))
    assert other.images.images["x"].target.digest == image.digest
    assert sent < SMALL.blob.size + BIG.blob.size * 1.9
    assert registry.uploaded(SMALL.blob.digest) == registry.uploaded(BIG.blob.digest) == 1
