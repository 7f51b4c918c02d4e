"""The collector as clients and operators see it: when it runs, what it answers, what a crash leaves, what waits."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from carina import context
from carina.backends import Backend
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from carina.images import Image
from carina.leases import Lease, Resource
from conformance.content_suite import get, put
from metadatad.collector import Collector, Schedule
from metadatad.removal import Remover
from support.content import directory
from support.views import View, content_backend, metadata, snapshot_backend, view

PROMPT = Schedule(startup_delay=0, pause_threshold=0.5)
MANIFEST = b"manifest"


@pytest.fixture
async def service() -> AsyncIterator[View]:
    with directory() as path:
        async with view(path) as service:
            yield service


async def bring(service: View, data: bytes) -> str:
    """Store a blob, or be told that it is there."""
    try:
        return await put(service.content, data)
    except AlreadyExists:
        return Digest.of(data)


async def image(service: View, name: str, layers: list[bytes]) -> Descriptor:
    """Store an image whose manifest refers to layers, under a lease as clients do."""
    await service.leases.create(Lease(id="pull"))
    with context.within(lease="pull"):
        refs = {f"containerd.io/gc.ref.content.l.{n}": await bring(service, data) for n, data in enumerate(layers)}
        digest = await put(service.content, MANIFEST + name.encode(), dict(refs))
        target = Descriptor(media_type="application/x", digest=digest, size=len(MANIFEST) + len(name))
        await service.images.create(Image(name=name, target=target))
    await service.leases.delete("pull")
    return target


async def until_stored(service: View, expected: set[Digest]) -> None:
    async with asyncio.timeout(30):
        while await service.stored() != expected:
            await asyncio.sleep(0.01)


async def test_deleted_image_frees_what_only_it_kept(service: View) -> None:
    """Deleting an image with `sync` returns when the disk is clean; what another image shares stays."""
    with context.within(namespace="one"):
        first = await image(service, "a", [b"shared", b"only a"])
        second = await image(service, "b", [b"shared", b"only b"])
        await service.collector.run(sync=True)
        assert len(await service.stored()) == 5
        await service.images.delete("a", sync=True)
        kept = {second.digest, Digest.of(b"shared"), Digest.of(b"only b")}
        assert await service.stored() == kept
        with pytest.raises(NotFound):
            await service.content.info(first.digest)
        assert await get(service.content, Digest.of(b"shared")) == b"shared"


async def test_answer_counts_objects_and_bytes(service: View) -> None:
    """A run says how many objects of which type went, and how many bytes came back."""
    with context.within(namespace="one"):
        await put(service.content, b"x" * 1000)
        await put(service.content, b"y" * 500)
        await service.snapshotter.prepare("key")
        past = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
        await service.leases.create(Lease(id="old", labels={"containerd.io/gc.expire": past}))
    result = await service.collector.run(sync=True)

    found = {removed.type: (removed.objects, removed.bytes) for removed in result.removed}
    assert found == {"content": (2, 1500), "snapshot/native": (1, 0), "lease": (1, 0)}
    assert 0 < result.lock_seconds <= result.seconds


async def test_flat_lease_holds_only_what_it_names(service: View) -> None:
    """A flat lease keeps an object without what that refers to."""
    with context.within(namespace="one"):
        other = await put(service.content, b"other")
        digest = await put(service.content, b"top", {"containerd.io/gc.ref.content": other})
        await service.leases.create(Lease(id="flat", labels={"containerd.io/gc.flat": "true"}))
        await service.leases.add_resource("flat", Resource(type="content", id=digest))
        await service.collector.run(sync=True)
    assert await service.stored() == {digest}


async def test_expired_image_is_collected(service: View) -> None:
    """An image with an expiry in the past goes, with what it kept; one in the future stays."""
    with context.within(namespace="one"):
        for name, hours in (("old", -1), ("new", 1)):
            target = await image(service, name, [name.encode()])
            moment = (datetime.now(UTC) + timedelta(hours=hours)).isoformat()
            labels = {"containerd.io/gc.expire": moment}
            await service.images.update(Image(name=name, target=target, labels=labels), ["labels"])
        await service.collector.run(sync=True)
        assert [one.name for one in await service.images.list()] == ["new"]
    assert await service.stored() == {Digest.of(MANIFEST + b"new"), Digest.of(b"new")}


async def test_collection_follows_a_deletion_by_itself() -> None:
    """Nobody has to ask: a deletion makes a collection due."""
    with directory() as path:
        async with view(path, schedule=PROMPT) as service:
            with context.within(namespace="one"):
                target = await image(service, "a", [b"layer"])
                await until_stored(service, {target.digest, Digest.of(b"layer")})
                await service.images.delete("a")
                await until_stored(service, set())


async def test_collection_follows_an_expiry_by_itself() -> None:
    """A lease that expires frees what it held, without anything else happening."""
    with directory() as path:
        async with view(path, schedule=PROMPT) as service:
            with context.within(namespace="one"):
                moment = (datetime.now(UTC) + timedelta(seconds=0.5)).isoformat()
                await service.leases.create(Lease(id="l", labels={"containerd.io/gc.expire": moment}))
                with context.within(lease="l"):
                    await put(service.content, b"data")
                await until_stored(service, set())


async def test_an_expiry_is_known_that_came_after_the_last_collection(service: View) -> None:
    """What expires is not left until something else makes a collection due."""
    with context.within(namespace="one"):
        digest = await put(service.content, b"data", {"containerd.io/gc.root": "x"})
        await service.collector.run(sync=True)
        moment = (datetime.now(UTC) + timedelta(seconds=0.5)).isoformat()
        await service.leases.create(Lease(id="l", labels={"containerd.io/gc.expire": moment}))
        async with asyncio.timeout(30):
            while await service.leases.list():
                await asyncio.sleep(0.05)
        assert await service.stored() == {digest}


async def test_mutations_alone_collect_nothing() -> None:
    """Without a deletion nothing is due, and a threshold delays what is."""
    with directory() as path:
        schedule = Schedule(startup_delay=1e8, deletion_threshold=3, mutation_threshold=0)
        async with view(path, schedule=schedule) as service:
            with context.within(namespace="one"):
                digest = await put(service.content, b"data")
                for number in range(3):
                    await asyncio.sleep(0.1)
                    assert await service.stored() == {digest}
                    await service.leases.create(Lease(id=str(number)))
                    await service.leases.delete(str(number))
                await until_stored(service, set())


async def test_tombstones_survive_the_process() -> None:
    """What was to be removed when the process ended, or while the back end was away, is removed by the next one."""
    with directory() as path:
        async with content_backend(path) as blobs, snapshot_backend(path) as trees:
            async with metadata(path) as (_, registry, _, _):
                with context.within(namespace="one"):
                    digest = await put(registry.content, b"data")
                    await registry.snapshotter("native").prepare("key")
                    await registry.content.delete(digest)
                    await registry.snapshotter("native").remove("key")
            assert [info.digest async for info in blobs.walk()] == [digest]
            async with metadata(path) as (_, _, records, collector):
                await collector.run(sync=True)
                assert [info.digest async for info in blobs.walk()] == []
                assert [info.name async for info in trees.walk()] == []
                rows = await records.read(lambda c: c.execute("SELECT count(*) FROM tombstones").fetchone()[0])
                assert rows == 0


async def test_stuck_back_end_holds_up_only_those_it_concerns(service: View) -> None:
    """A removal that hangs is waited for by whom it concerns; other collections are over at once."""

    class Stuck:
        async def run(self) -> bool:
            await asyncio.Event().wait()
            return False

    class Backends:
        def removers(self) -> dict[tuple[str, str], Remover]:
            return {**service.registry.removers(), ("snapshot", "native"): Stuck()}

        async def settle(self) -> None:
            return

    schedule = Schedule(startup_delay=1e8, sync_seconds=0.3)
    collector = Collector(service.records, Backends(), schedule=schedule, changed=service.registry.content.changed)
    serving = asyncio.create_task(collector.serve())
    with context.within(namespace="one"):
        await service.snapshotter.prepare("key")
        with pytest.raises(Unavailable):
            await collector.run(sync=True)
        digest = await put(service.content, b"data")
        await collector.run(sync=False)
        await until_stored(service, set())
        with pytest.raises(NotFound):
            await service.content.info(digest)
    serving.cancel()
    await asyncio.wait([serving])


async def test_back_ends_are_added_and_removed_live(service: View) -> None:
    """A snapshotter is plugged in while everything runs, and out again when nothing refers to it."""
    backend = Backend(type="snapshot", name="second", address=f"unix://{service.path}/second.sock")
    with pytest.raises(Unavailable):
        await service.backends.add(backend)
    async with snapshot_backend(service.path, "second"):
        added = await service.backends.add(backend)
        assert (added.error, added.own, added.configured) == ("", False, False)
        with pytest.raises(AlreadyExists):
            await service.backends.add(backend)
        with context.within(namespace="one"):
            await service.registry.snapshotter("second").prepare("key")
            with pytest.raises(FailedPrecondition):
                await service.backends.remove("snapshot", "second")
            await service.registry.snapshotter("second").remove("key")
        await service.collector.run(sync=True)
        await service.backends.remove("snapshot", "second")
    with pytest.raises(NotFound):
        await service.backends.remove("snapshot", "second")
    with pytest.raises(FailedPrecondition):
        await service.backends.remove("snapshot", "native")
    with pytest.raises(InvalidArgument):
        await service.backends.add(Backend(type="snapshot", name="../x", address="unix:///x"))


async def test_added_back_end_is_there_after_a_restart() -> None:
    """What was added live is listed by the next process, with an error while it does not answer."""
    with directory() as path:
        async with content_backend(path), snapshot_backend(path):
            async with metadata(path) as (_, registry, _, _), snapshot_backend(path, "second"):
                await registry.add(Backend(type="snapshot", name="second", address=f"unix://{path}/second.sock"))
            async with metadata(path) as (_, registry, _, _):
                found = {backend.name: backend for backend in await registry.list()}
                assert set(found) == {"content", "native", "second"}
                assert found["native"].error == ""
                assert "nothing answers" in found["second"].error
