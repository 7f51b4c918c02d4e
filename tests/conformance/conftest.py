"""The implementations of the record stores: ours in this process, ours behind a socket, a real containerd's."""

import itertools
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from carina import context
from carina.rpc.client import connect
from support.content import containerd, directory
from support.metadata import Services, Stores, services, stores

NAMESPACES = itertools.count()


@pytest.fixture
async def local_stores(tmp_path: Path) -> AsyncIterator[Stores]:
    async with stores(tmp_path, "local") as opened:
        with context.within(namespace="test"):
            yield opened


@pytest.fixture
async def remote_stores(tmp_path: Path) -> AsyncIterator[Stores]:
    async with stores(tmp_path, "socket") as opened:
        with context.within(namespace="test"):
            yield opened


@pytest.fixture(scope="session")
def containerd_address() -> Iterator[str]:
    """A containerd that all tests of the session share, each in a namespace of its own."""
    if shutil.which("containerd") is None:
        pytest.skip("needs containerd")
    with directory() as path, containerd(path) as address:
        yield address


@pytest.fixture
async def containerd_services(containerd_address: str) -> AsyncIterator[Services]:
    channel = connect(containerd_address)
    try:
        with context.within(namespace=f"test-{next(NAMESPACES)}"):
            yield services(channel)
    finally:
        channel.close()
