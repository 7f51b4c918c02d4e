"""Snapshots per namespace: names, labels, leases, events, remote snapshotters, and calls that break half-way."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from carina import context
from carina.aio.finish import finish
from carina.backends import Backend
from carina.config import ProxyPlugin
from carina.errors import AlreadyExists, CarinaError, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from carina.leases import Lease, Resource
from carina.mount import Mount
from carina.rpc.server import serve
from carina.snapshots import Info, Kind
from carina.snapshots.server import SnapshotsService, only
from metadatad.backends import Registry, Settings
from metadatad.records import Records
from metadatad.snapshots import NamespacedSnapshotter
from snapshotd.native import Native
from snapshotd.snapshotter import LocalSnapshotter, open_snapshotter
from snapshotd.snapshotter import Settings as SnapshotterSettings
from support.content import directory
from support.views import View, metadata, view

TARGET = "containerd.io/snapshot.ref"
ROOT = {"containerd.io/gc.root": "x"}


@pytest.fixture
async def service() -> AsyncIterator[View]:
    with directory() as path:
        async with view(path) as service:
            yield service


class Faulty:
    """A snapshotter in front of a real one: it fails or hangs where it is told, and knows remote targets."""

    def __init__(self, inner: LocalSnapshotter) -> None:
        self.inner = inner
        self.before: dict[str, CarinaError | None] = {}
        """Method -> what it fails with before it does anything; None: it hangs."""
        self.after: dict[str, CarinaError | None] = {}
        """The same after it has done everything."""

    def __getattr__(self, name: str) -> object:
        method = getattr(self.inner, name)
        if name == "walk":
            return method

        async def call(*args: object) -> object:
            await self._fail(self.before, name)
            result = await method(*args)
            await self._fail(self.after, name)
            return result

        return call

    async def _fail(self, faults: dict[str, CarinaError | None], name: str) -> None:
        if name in faults:
            error = faults[name]
            if error is None:
                await asyncio.Event().wait()
            else:
                raise error

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        await self._fail(self.before, "prepare")
        if (labels or {}).get(TARGET) == "remote":
            if "remote-tree" not in [info.name async for info in self.inner.walk()]:
                await self.inner.prepare("remote-work", parent)
                await self.inner.commit("remote-tree", "remote-work", {TARGET: "remote"})
            raise AlreadyExists("the target is there")
        mounts = await self.inner.prepare(key, parent, labels)
        await self._fail(self.after, "prepare")
        return mounts


@contextlib.asynccontextmanager
async def faulty(path: Path) -> AsyncIterator[tuple[Faulty, NamespacedSnapshotter, Registry, Records]]:
    plugin = ProxyPlugin(name="faulty", type="snapshot", address=f"unix://{path}/faulty.sock")
    settings = Settings(answer_seconds=0.5, work_seconds=0.5)
    async with open_snapshotter(path / "faulty", Native(), SnapshotterSettings(durable=False)) as inner:
        snapshotter = Faulty(inner)
        handlers = [SnapshotsService(only(snapshotter))]  # type: ignore[arg-type]
        async with serve(plugin.address, handlers, name="faulty", grace=0.1):
            async with metadata(path, settings=settings, plugins=[plugin]) as (_, registry, records, _):
                with context.within(namespace="one"):
                    yield snapshotter, registry.snapshotter("faulty"), registry, records


async def counts(records: Records) -> tuple[int, int, int]:
    """Rows of snapshots, intents and tombstones, without those of snapshots that were not there when looked for."""
    tables = ("snapshots", "intents", "tombstones WHERE due = 0")
    return await records.read(
        lambda c: tuple(c.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)
    )


async def test_namespaces_use_the_same_keys(service: View) -> None:
    """Two namespaces with one key have two snapshots."""
    for namespace in ("one", "two"):
        with context.within(namespace=namespace):
            await service.snapshotter.prepare("key", labels={**ROOT, "of": namespace})
            await service.snapshotter.commit("name", "key", {**ROOT, "of": namespace})
    with context.within(namespace="one"):
        assert (await service.snapshotter.stat("name")).labels["of"] == "one"
        assert [info.name async for info in service.snapshotter.walk()] == ["name"]
        await service.snapshotter.remove("name")
        await service.collector.run(sync=True)
    with context.within(namespace="two"):
        assert (await service.snapshotter.stat("name")).kind is Kind.COMMITTED
    assert len(await service.trees_there()) == 1


async def test_back_end_is_told_only_its_labels(service: View) -> None:
    """Labels for the collector and for clients stay here; a snapshotter's own go to it, changed ones too."""
    own = {"containerd.io/snapshot/x": "1"}
    with context.within(namespace="one"):
        await service.snapshotter.prepare("key", labels={**ROOT, **own, "mine": "a"})
        info = await service.snapshotter.stat("key")
        assert info.labels == {**ROOT, **own, "mine": "a"}
        await service.snapshotter.update(
            Info(name="key", labels={"containerd.io/snapshot/x": "2", "mine": "b"}),
            ["labels.containerd.io/snapshot/x", "labels.mine"],
        )
    behind = [info.labels async for info in service.trees.walk()]
    assert behind == [{"containerd.io/snapshot/x": "2"}]


async def test_lease_follows_the_commit(service: View) -> None:
    """A lease holds what was prepared under it, then what that became."""
    with context.within(namespace="one"):
        await service.leases.create(Lease(id="l"))
        with context.within(lease="l"):
            await service.snapshotter.prepare("key")
            assert await service.leases.resources("l") == [Resource(type="snapshots/native", id="key")]
            await service.collector.run(sync=True)
            await service.snapshotter.commit("name", "key")
        assert await service.leases.resources("l") == [Resource(type="snapshots/native", id="name")]
        await service.collector.run(sync=True)
        assert (await service.snapshotter.stat("name")).name == "name"
        await service.leases.delete("l", sync=True)
        with pytest.raises(NotFound):
            await service.snapshotter.stat("name")
    assert await service.trees_there() == set()


async def test_existing_target_is_leased(service: View) -> None:
    """Preparing for a target that is there says so, and the call's lease holds it from then on."""
    with context.within(namespace="one"):
        await service.leases.create(Lease(id="l"))
        await service.snapshotter.prepare("key", labels=ROOT)
        await service.snapshotter.commit("layer", "key", ROOT)
        with context.within(lease="l"), pytest.raises(AlreadyExists):
            await service.snapshotter.prepare("other", labels={TARGET: "layer"})
        assert await service.leases.resources("l") == [Resource(type="snapshots/native", id="layer")]


async def test_parents_keep_their_place(service: View) -> None:
    """A snapshot with children is not removed; whole dead chains are collected, children first."""
    with context.within(namespace="one"):
        parent = ""
        for number in range(4):
            await service.snapshotter.prepare("work", parent, ROOT)
            await service.snapshotter.commit(f"layer{number}", "work", ROOT if number == 3 else {})
            parent = f"layer{number}"
        with pytest.raises(FailedPrecondition):
            await service.snapshotter.remove("layer0")
        await service.collector.run(sync=True)
        assert len(await service.trees_there()) == 4
        await service.snapshotter.update(Info(name="layer3"), ["labels"])
        result = await service.collector.run(sync=True)
    assert [(removed.type, removed.objects) for removed in result.removed] == [("snapshot/native", 4)]
    assert await service.trees_there() == set()


async def test_unknown_snapshotter(service: View) -> None:
    """A name that is not configured is the caller's mistake."""
    with pytest.raises(InvalidArgument):
        service.registry.snapshotter("nowhere")


async def test_remote_target_is_adopted() -> None:
    """What a remote snapshotter has already is recorded in each namespace, and removed with the last record."""
    with directory() as path:
        async with faulty(path) as (behind, snapshotter, registry, records):
            for namespace in ("one", "two"):
                with context.within(namespace=namespace):
                    with pytest.raises(AlreadyExists):
                        await snapshotter.prepare("work", labels={**ROOT, TARGET: "remote"})
                    assert (await snapshotter.stat("remote")).kind is Kind.COMMITTED
            assert await counts(records) == (2, 0, 0)
            await snapshotter.remove("remote")
            assert await counts(records) == (1, 0, 0)
            with context.within(namespace="two"):
                await snapshotter.remove("remote")
            await registry.removers()["snapshot", "faulty"].run()
            assert await counts(records) == (0, 0, 0)
            assert [info.name async for info in behind.inner.walk()] == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", [Unavailable("it broke"), FailedPrecondition("it said no"), None])
async def test_failed_prepare_leaves_nothing(when: str, how: CarinaError | None) -> None:
    """Whenever and however a prepare fails, its key is free again and the back end is cleaned."""
    with directory() as path:
        async with faulty(path) as (behind, snapshotter, registry, records):
            getattr(behind, when)["prepare"] = how
            with pytest.raises(CarinaError):
                await snapshotter.prepare("key")
            with pytest.raises(NotFound):
                await snapshotter.stat("key")
            getattr(behind, when).clear()
            await registry.removers()["snapshot", "faulty"].run()
            assert [info.name async for info in behind.inner.walk()] == []
            assert await counts(records) == (0, 0, 0)
            await snapshotter.prepare("key")


@pytest.mark.parametrize("how", [Unavailable("it broke"), None])
async def test_commit_whose_answer_is_lost_is_found_out(how: CarinaError | None) -> None:
    """The back end is asked whether a commit happened; then it counts."""
    with directory() as path:
        async with faulty(path) as (behind, snapshotter, _, records):
            await snapshotter.prepare("key")
            behind.after["commit"] = how
            with pytest.raises(CarinaError):
                await snapshotter.commit("name", "key")
            assert (await snapshotter.stat("name")).kind is Kind.COMMITTED
            assert await counts(records) == (1, 0, 0)


async def test_commit_is_settled_when_the_back_end_is_back() -> None:
    """While nobody can say whether a commit happened, the intent stays; the next look settles it."""
    with directory() as path:
        async with faulty(path) as (behind, snapshotter, _, records):
            await snapshotter.prepare("key")
            behind.after["commit"] = behind.before["stat"] = Unavailable("it broke")
            with pytest.raises(Unavailable):
                await snapshotter.commit("name", "key")
            assert await counts(records) == (1, 1, 0)
            behind.after.clear()
            behind.before.clear()
            with pytest.raises(AlreadyExists):
                await snapshotter.commit("name", "key")
            assert await counts(records) == (1, 0, 0)


async def test_commit_that_did_not_happen_can_be_repeated() -> None:
    """A commit that failed before it began leaves the active snapshot as it was."""
    with directory() as path:
        async with faulty(path) as (behind, snapshotter, _, _):
            await snapshotter.prepare("key")
            behind.before["commit"] = Unavailable("it broke")
            with pytest.raises(Unavailable):
                await snapshotter.commit("name", "key")
            behind.before.clear()
            await snapshotter.commit("name", "key")
            assert (await snapshotter.stat("name")).kind is Kind.COMMITTED


async def test_cancelled_commit_loses_no_tree() -> None:
    """A back end that finishes what its caller gave up still leaves a snapshot that can be used."""
    with directory() as path:
        async with faulty(path) as (behind, snapshotter, _, records):
            await snapshotter.prepare("key")
            begun, going = asyncio.Event(), asyncio.Event()

            async def commit(*args: object) -> None:
                begun.set()
                await finish(going.wait())
                await finish(behind.inner.commit(*args))  # type: ignore[arg-type]

            behind.commit = commit  # type: ignore[attr-defined]
            task = asyncio.create_task(snapshotter.commit("name", "key"))
            await begun.wait()
            task.cancel()
            await asyncio.sleep(0.1)
            going.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await snapshotter.stat("name")).kind is Kind.COMMITTED
            assert await counts(records) == (1, 0, 0)


async def test_cancelled_prepare_is_undone() -> None:
    """Whoever gives up a prepare leaves nothing behind."""
    with directory() as path:
        async with faulty(path) as (behind, snapshotter, _, records):
            behind.after["prepare"] = None
            task = asyncio.create_task(snapshotter.prepare("key"))
            while [info.name async for info in behind.inner.walk()] == []:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await counts(records) == (0, 0, 1)


async def test_list_of_a_stalled_snapshotter_ends() -> None:
    """A list has a limit for each answer, not the one for long work."""

    async def walk(*args: object) -> AsyncIterator[Info]:
        yield Info(name="some", kind=Kind.ACTIVE)
        await asyncio.Event().wait()

    with directory() as path:
        async with faulty(path) as (behind, snapshotter, _, _):
            await snapshotter.prepare("key")
            snapshotter.peer = replace(snapshotter.peer, work_seconds=60)
            behind.walk = walk  # type: ignore[attr-defined]
            async with asyncio.timeout(30):
                with pytest.raises(Unavailable, match="did not answer"):
                    _ = [info async for info in snapshotter.walk()]


async def test_stalled_snapshotter_costs_only_its_own_calls() -> None:
    """While one snapshotter hangs, another, the content and the database answer at once."""
    with directory() as path:
        async with view(path) as service:
            plugin = ProxyPlugin(name="faulty", type="snapshot", address=f"unix://{path}/faulty.sock")
            async with open_snapshotter(path / "faulty", Native(), SnapshotterSettings(durable=False)) as inner:
                behind = Faulty(inner)
                async with serve(plugin.address, [SnapshotsService(only(behind))], name="f", grace=0.1):  # type: ignore[arg-type]
                    await service.registry.add(Backend(type="snapshot", name="faulty", address=plugin.address))
                    with context.within(namespace="one"):
                        stalled = service.registry.snapshotter("faulty")
                        await stalled.prepare("gone")
                        behind.before.update(dict.fromkeys(("prepare", "remove", "stat", "cleanup"), None))
                        hanging = asyncio.create_task(stalled.prepare("key"))
                        await stalled.remove("gone")
                        await service.collector.run()
                        begun = asyncio.get_running_loop().time()
                        await service.snapshotter.prepare("key")
                        await service.snapshotter.remove("key")
                        await service.collector.run(sync=False)
                        await service.leases.create(Lease(id="l"))
                        await service.leases.delete("l")
                        assert asyncio.get_running_loop().time() - begun < 2
                        hanging.cancel()
                        await asyncio.wait([hanging])
