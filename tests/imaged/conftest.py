"""Fixtures of the tests of pulls."""

from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp import web

from carina import context
from support.pulls import Hostile, World
from support.registry import Registry


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """Every call is made in a namespace."""
    with context.within(namespace="default"):
        yield


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Debian's docker-registry."""
    with Registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
async def hostile() -> AsyncIterator[Hostile]:
    hostile = Hostile()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", hostile.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    hostile.port = runner.addresses[0][1]
    yield hostile
    await runner.cleanup()
