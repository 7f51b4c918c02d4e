"""The full mark: when it runs, and what comes of garbage that nothing has noted."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from carina import context
from carina.descriptor import Descriptor
from carina.gc import Removed
from carina.images import Image
from carina.leases import Lease
from conformance.content_suite import put
from metadatad.collector import Schedule
from support.content import directory
from support.views import View, content_backend, metadata, snapshot_backend, view

PROMPT = Schedule(startup_delay=0, pause_threshold=0.5)
LIMIT = 30.0


@pytest.fixture
async def service() -> AsyncIterator[View]:
    with directory() as path:
        async with view(path) as service:
            with context.within(namespace="one"):
                yield service


async def forgotten(service: View, data: bytes) -> str:
    """A blob that nothing keeps, and that no candidate tells of."""
    digest = await put(service.content, data)
    await service.records.database.write(lambda connection: connection.execute("DELETE FROM candidates"))
    return digest


def state(path: Path) -> dict[str, int]:
    """What the collector has noted of itself."""
    connection = sqlite3.connect(path / "metadata.sqlite")
    found = dict(connection.execute("SELECT name, value FROM collector").fetchall())
    connection.close()
    return found


async def test_missed_garbage_is_collected_named_and_counted(service: View, caplog: pytest.LogCaptureFixture) -> None:
    """Garbage without a candidate stays until a full mark, which says what it is; and then it goes."""
    await service.collector.run(sync=True, full=True)
    digest = await forgotten(service, b"data")
    assert (await service.collector.run(sync=True)).removed == ()
    with caplog.at_level(logging.WARNING):
        found = await service.collector.run(sync=True, full=True)

    assert (found.missed, found.removed) == (1, (Removed(type="content", objects=1, bytes=4),))
    assert await service.stored() == set()
    assert f"one: content/{digest}" in caplog.text
    statistics = await service.collector.statistics()
    assert (statistics.checks, statistics.missed) == (2, 1)


async def test_what_candidates_tell_is_not_missed(service: View) -> None:
    """Garbage that the next collection finds by itself is no news to the full mark."""
    await put(service.content, b"above", {"containerd.io/gc.ref.content": await put(service.content, b"below")})
    found = await service.collector.run(full=True)

    assert found.missed == 0
    assert found.removed == (Removed(type="content", objects=2, bytes=10),)


async def test_statistics_add_up(service: View) -> None:
    """What collections removed, and what waits for them, is told by type."""
    for number in range(3):
        await put(service.content, b"x" * number + b"y")
        await service.collector.run(sync=True)
    await service.leases.create(Lease(id="l", labels={"containerd.io/gc.expire": "2100-01-01T00:00:00Z"}))
    await put(service.content, b"waiting")
    found = await service.collector.statistics()

    assert found.removed == (Removed(type="content", objects=3, bytes=6),)
    assert (found.collections, found.failures, found.candidates) == (3, 0, 1)
    assert found.next_candidate is not None
    assert found.next_candidate.year == 2100
    assert 0 < found.longest_lock_seconds <= found.lock_seconds <= found.seconds
    assert found.collected_at is not None
    assert found.since <= found.collected_at


@pytest.mark.parametrize("crashed", ["running", "check_due"])
async def test_full_mark_after_a_crash_or_a_migration(crashed: str) -> None:
    """Where the process before did not end in order, or the schema is new, garbage is looked for everywhere."""
    with directory() as path:
        async with content_backend(path) as blobs, snapshot_backend(path):
            async with metadata(path, schedule=PROMPT) as (_, registry, records, _):
                with context.within(namespace="one"):
                    async with asyncio.timeout(LIMIT):
                        while state(path)["check_due"]:
                            await asyncio.sleep(0.01)
                    await put(registry.content, b"data")
                    await records.database.write(lambda connection: connection.execute("DELETE FROM candidates"))
                assert state(path)["running"] == 1
            assert state(path)["running"] == 0
            connection = sqlite3.connect(path / "metadata.sqlite", isolation_level=None)
            connection.execute("UPDATE collector SET value = 1 WHERE name = ?", (crashed,))
            connection.close()
            async with metadata(path, schedule=PROMPT) as (_, _, _, collector), asyncio.timeout(LIMIT):
                while [info async for info in blobs.walk()]:
                    await asyncio.sleep(0.01)
                assert (await collector.statistics()).missed == (1 if crashed == "running" else 0)


async def test_full_mark_comes_again() -> None:
    """The full mark runs at its interval."""
    with directory() as path:
        schedule = Schedule(startup_delay=0, check_interval=0.01)
        async with view(path, schedule=schedule) as service, asyncio.timeout(LIMIT):
            while (await service.collector.statistics()).checks < 3:
                await asyncio.sleep(0.01)


async def test_many_changes_make_a_collection_due() -> None:
    """Garbage that no deletion leaves is collected after as many changes as the threshold says."""
    with directory() as path:
        schedule = Schedule(startup_delay=0, pause_threshold=0.5, mutation_threshold=10)
        async with view(path, schedule=schedule) as service, asyncio.timeout(LIMIT):
            with context.within(namespace="one"):
                await put(service.content, b"data")
                number = 0
                while await service.stored():
                    await service.leases.create(Lease(id=str(number)))
                    number += 1


async def test_expired_image_is_back_before_it_goes(service: View) -> None:
    """An image whose expiry is moved before a collection stays, and goes when the later one is over."""
    await service.leases.create(Lease(id="l"))
    with context.within(lease="l"):
        digest = await put(service.content, b"data")
    target = Descriptor(media_type="m", digest=digest, size=4)
    labels = {"containerd.io/gc.expire": "2000-01-01T00:00:00Z"}
    await service.images.create(Image(name="i", target=target, labels=labels))
    labels = {"containerd.io/gc.expire": "2100-01-01T00:00:00Z"}
    await service.images.update(Image(name="i", target=target, labels=labels), ["labels"])
    await service.leases.delete("l")
    await service.collector.run(sync=True)
    assert await service.stored() == {digest}
    labels = {"containerd.io/gc.expire": "2000-01-01T00:00:00Z"}
    await service.images.update(Image(name="i", target=target, labels=labels), ["labels"])
    await service.collector.run(sync=True)
    assert await service.stored() == set()
