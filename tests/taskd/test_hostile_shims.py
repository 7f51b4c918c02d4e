"""Shims that hang, lie or die: each costs its own task at the most, and leaves nothing."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from carina.errors import CarinaError, Unavailable, Unimplemented
from support.shim import install
from support.tasks import World, world

pytestmark = pytest.mark.root

MODES = (
    "hangs",
    "garbage",
    "fails",
    "nobody",
    "grpc",
    "foreign",
    "silent",
    "dies",
    "nonsense",
    "oversize",
    "wordy",
    "nodelete",
)


@pytest.fixture
async def carina(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    await asyncio.to_thread(install, tmp_path / "shims", *MODES)
    monkeypatch.setenv("SHIM_CALLS", str(tmp_path / "calls"))
    # Most modes answer, sooner or later: the patience is short only for what never comes.
    mode: str = request.node.callspec.params.get("mode", "") if hasattr(request.node, "callspec") else ""
    patience = getattr(request, "param", 10.0)
    settings: dict[str, Any] = {
        "start_seconds": {"hangs": 0.4, "silent": 5.0}.get(mode, patience),
        "create_seconds": 0.4 if mode == "silent" else patience,
        "call_seconds": 0.4 if mode == "silent" else patience,
        "cleanup_seconds": 5,
        "shim_directories": f"['{tmp_path / 'shims'}']",
    }
    async with world(**settings) as made, made.local():
        yield made


@pytest.mark.parametrize(
    ("mode", "error", "text"),
    [
        ("hangs", Unavailable, "not finished within 0.4 s"),
        ("garbage", CarinaError, "answered no address"),
        ("fails", CarinaError, "no luck today"),
        ("nobody", Unavailable, "nobody.sock"),
        ("grpc", Unavailable, "nothing answers at"),
        ("foreign", Unimplemented, "speaks carrier pigeon version 3"),
        ("silent", CarinaError, "no answer within"),
        ("dies", Unavailable, "connection was lost"),
        ("nonsense", CarinaError, "not a ttrpc response"),
        ("oversize", CarinaError, "longer than"),
        ("wordy", CarinaError, "the dog ate it"),
    ],
)
async def test_creation_fails_clean(carina: World, mode: str, error: type[CarinaError], text: str) -> None:
    """A shim that misbehaves at creation fails it within the time that is set, with words, and leaves nothing."""
    id = carina.add("true", runtime=f"io.carina.{mode}.v1")
    started = time.monotonic()
    with pytest.raises(error, match=text):
        await carina.tasks.create(id)
    assert time.monotonic() - started < 30
    assert not carina.bundle(id).exists()
    assert await carina.tasks.list() == []
    assert carina.shims() == []
    assert carina.events.topics(id) == []


@pytest.mark.parametrize("carina", [20.0], indirect=True)
async def test_others_are_not_delayed(carina: World) -> None:
    """While many shims hang, other tasks run as ever; a creation that is given up leaves nothing."""
    stuck = [carina.add("true", runtime="io.carina.hangs.v1") for _ in range(20)]
    creations = [asyncio.create_task(carina.tasks.create(id)) for id in stuck]
    await asyncio.sleep(0.2)
    async with asyncio.timeout(15):
        id = await carina.run("sh", "-c", "exit 4")
        assert (await carina.tasks.wait(id)).status == 4
        await carina.tasks.delete(id)
    assert not any(creation.done() for creation in creations)
    for creation in creations:
        creation.cancel()
    await asyncio.wait(creations)
    assert all(creation.cancelled() for creation in creations)
    assert [id for id in stuck if carina.bundle(id).exists()] == []
    assert carina.shims() == []
