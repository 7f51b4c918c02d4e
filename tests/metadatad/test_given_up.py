"""A prepare that was given up because the back end hung, and that the back end carries out later."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from carina import context
from carina.config import ProxyPlugin
from carina.errors import Unavailable
from carina.mount import Mount
from carina.rpc.client import connect
from carina.rpc.server import serve
from carina.snapshots import Kind, Snapshotter
from carina.snapshots.client import RemoteSnapshotter
from carina.snapshots.server import SnapshotsService, only
from metadatad.backends import Registry, Settings
from metadatad.collector import Collector
from metadatad.records import Records
from snapshotd.native import Native
from snapshotd.snapshotter import LocalSnapshotter, open_snapshotter
from snapshotd.snapshotter import Settings as SnapshotterSettings
from support.content import directory
from support.snapshots import snapshotd
from support.views import content_backend, metadata, snapshot_backend

LIMIT = 30.0
ROOT = {"containerd.io/gc.root": "x"}
BRISK = Settings(answer_seconds=0.5, work_seconds=0.5)
Serving = tuple[Snapshotter, Registry, Records, Collector]


class Late:
    """A snapshotter in front of a real one that prepares when it is let, whoever has gone meanwhile."""

    def __init__(self, inner: LocalSnapshotter) -> None:
        self.inner = inner
        self.held = False
        self.let, self.done = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        if not self.held:
            return await self.inner.prepare(key, parent, labels)
        self.working = asyncio.create_task(self._prepare_late(key, parent, labels))
        return await asyncio.shield(self.working)

    async def _prepare_late(self, key: str, parent: str, labels: Mapping[str, str] | None) -> list[Mount]:
        await self.let.wait()
        mounts = await self.inner.prepare(key, parent, labels)
        self.done.set()
        return mounts


@asynccontextmanager
async def service(path: Path, address: str) -> AsyncIterator[Serving]:
    """metadatad with a snapshotter `it` at an address that it soon gives up, with a committed `base` on it."""
    plugin = ProxyPlugin(name="it", type="snapshot", address=address)
    async with content_backend(path), snapshot_backend(path):
        async with metadata(path, settings=BRISK, plugins=[plugin]) as (_, registry, records, collector):
            snapshotter = registry.snapshotter("it")
            with context.within(namespace="one"):
                await snapshotter.prepare("key", labels=ROOT)
                await snapshotter.commit("base", "key", ROOT)
                yield snapshotter, registry, records, collector


async def there(behind: Snapshotter) -> int:
    return len([info async for info in behind.walk()])


async def awaited(records: Records) -> int:
    """Objects that are looked for although they were not there."""
    query = "SELECT count(*) FROM tombstones WHERE due > 0"
    return int(await records.read(lambda c: c.execute(query).fetchone()[0]))


async def everything_goes(serving: Serving, behind: Snapshotter) -> None:
    """The parent can be removed, and nothing is left."""
    snapshotter, _, _, collector = serving
    await snapshotter.remove("base")
    async with asyncio.timeout(LIMIT):
        while await there(behind):
            await collector.run()
            await asyncio.sleep(0.05)


async def test_what_is_made_later_is_removed_then(tmp_path: Path) -> None:
    """Even where the back end was asked to remove it before it was there, and had answered that it is not."""
    with directory() as path:
        settings = SnapshotterSettings(durable=False)
        async with open_snapshotter(path / "late", Native(), settings) as inner:
            late = Late(inner)
            handlers = [SnapshotsService(only(late))]  # type: ignore[arg-type]
            async with serve(f"unix://{path}/late.sock", handlers, name="late", grace=0.1):
                async with service(path, f"unix://{path}/late.sock") as serving:
                    snapshotter, _, records, collector = serving
                    late.held = True
                    with pytest.raises(Unavailable, match=r"snapshotter it did not answer for 0\.5 s"):
                        await snapshotter.prepare("child", "base", ROOT)
                    async with asyncio.timeout(LIMIT):
                        while not await awaited(records):
                            await collector.run()
                            await asyncio.sleep(0.02)
                    assert (await collector.statistics()).remaining == ()
                    assert await there(inner) == 1
                    late.let.set()
                    await late.done.wait()
                    assert await there(inner) == 2
                    late.held = False
                    await everything_goes(serving, inner)
                    async with asyncio.timeout(LIMIT):
                        while await awaited(records):
                            await asyncio.sleep(0.02)


async def test_a_stopped_snapshotter_keeps_no_orphans(tmp_path: Path) -> None:
    """Stopped in the middle of calls and continued after they were given up: what it makes of them goes."""
    with directory() as path, snapshotd(path, "native") as process:
        behind = connect(f"unix://{path}/snapshotd-native.sock")
        try:
            async with service(path, behind.address) as serving:
                snapshotter, registry, records, _ = serving
                os.kill(process.pid, signal.SIGSTOP)
                for number in range(3):
                    with pytest.raises(Unavailable):
                        await snapshotter.prepare(f"child{number}", "base", ROOT)
                os.kill(process.pid, signal.SIGCONT)
                async with asyncio.timeout(LIMIT):
                    while any(backend.error for backend in await registry.list()):
                        await asyncio.sleep(0.02)
                await snapshotter.prepare("child0", "base", ROOT)
                await snapshotter.remove("child0")
                await everything_goes(serving, RemoteSnapshotter(behind))
                assert await records.read(lambda c: c.execute("SELECT count(*) FROM intents").fetchone()[0]) == 0
        finally:
            os.kill(process.pid, signal.SIGCONT)
            behind.close()


async def test_a_commit_on_a_stopped_snapshotter_happens_or_not(tmp_path: Path) -> None:
    """Whatever becomes of it when the snapshotter goes on, the records say the same as the snapshotter."""
    with directory() as path, snapshotd(path, "native") as process:
        address = f"unix://{path}/snapshotd-native.sock"
        try:
            async with service(path, address) as (snapshotter, registry, records, collector):
                await snapshotter.prepare("work", "base", ROOT)
                os.kill(process.pid, signal.SIGSTOP)
                with pytest.raises(Unavailable):
                    await snapshotter.commit("name", "work", ROOT)
                os.kill(process.pid, signal.SIGCONT)
                async with asyncio.timeout(LIMIT):
                    while await records.read(lambda c: c.execute("SELECT count(*) FROM intents").fetchone()[0]):
                        await collector.run()
                        await asyncio.sleep(0.05)
                    while any(backend.error for backend in await registry.list()):
                        await asyncio.sleep(0.02)
                (info,) = [info async for info in snapshotter.walk() if info.name != "base"]
                assert (info.name, info.kind) in {("name", Kind.COMMITTED), ("work", Kind.ACTIVE)}
                assert await snapshotter.stat(info.name) == info
        finally:
            os.kill(process.pid, signal.SIGCONT)
