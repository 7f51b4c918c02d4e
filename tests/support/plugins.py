"""A snapshotter plugin in a process of its own that has a hard life, and a view on it that must not show."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from carina.aio.threads import in_thread
from carina.mount import Mount
from carina.snapshots import Info, Snapshotter, Usage
from support.snapshots import snapshotd

T = TypeVar("T")
HANG_EVERY: Final = 5
RESTART_EVERY: Final = 60
"""Calls after which the plugin is stopped for a moment, or started anew."""
HANG_SECONDS: Final = 0.02


class Plugin:
    """snapshotd with driver overlayfs; each start of it changes what it says it can."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.address = f"unix://{base}/snapshotd-overlayfs.sock"
        self.calls = self.starts = 0
        self._running = contextlib.ExitStack()

    @property
    def slow(self) -> bool:
        """Whether it is without the capability `only-remap-ids` now."""
        return self.starts % 2 == 0

    def start(self) -> None:
        self.starts += 1
        config = self.base / "config.toml"
        config.write_text(f"[snapshots.overlayfs]\ndurable = false\nslow_chown = {str(self.slow).lower()}\n")
        self._process = self._running.enter_context(snapshotd(self.base, config=config))

    def restart(self) -> None:
        """Kill it, and start it again."""
        self._process.kill()
        self.close()
        self.start()

    def close(self) -> None:
        self._running.close()

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


class Tormenting:
    """`carina.snapshots.Snapshotter` on a view of a plugin, which hangs during calls and is killed between them."""

    def __init__(self, view: Snapshotter, plugin: Plugin) -> None:
        self._view = view
        self._plugin = plugin
        self._under_way = 0

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return await self._call(lambda: self._view.prepare(key, parent, labels))

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return await self._call(lambda: self._view.view(key, parent, labels))

    async def mounts(self, key: str) -> list[Mount]:
        return await self._call(lambda: self._view.mounts(key))

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        await self._call(lambda: self._view.commit(name, key, labels, parent))

    async def remove(self, key: str) -> None:
        await self._call(lambda: self._view.remove(key))

    async def stat(self, key: str) -> Info:
        return await self._call(lambda: self._view.stat(key))

    async def update(self, info: Info, fields: Sequence[str] = ()) -> Info:
        return await self._call(lambda: self._view.update(info, fields))

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        async for info in self._view.walk(filters):
            yield info

    async def usage(self, key: str) -> Usage:
        return await self._call(lambda: self._view.usage(key))

    async def cleanup(self) -> None:
        await self._call(self._view.cleanup)

    async def close(self) -> None:
        await self._view.close()

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        plugin = self._plugin
        plugin.calls += 1
        # Whatever is under way when a plugin dies fails, as it should: it dies between calls.
        if plugin.calls % RESTART_EVERY == 0 and not self._under_way:
            await in_thread(plugin.restart)
        self._under_way += 1
        try:
            if plugin.calls % HANG_EVERY:
                return await call()
            return await self._call_hanging(call)
        finally:
            self._under_way -= 1

    async def _call_hanging(self, call: Callable[[], Awaitable[T]]) -> T:
        async def awaken() -> None:
            await asyncio.sleep(HANG_SECONDS)
            hanging.close()

        with contextlib.ExitStack() as hanging:
            hanging.enter_context(self._plugin.hanging())
            async with asyncio.TaskGroup() as tasks:
                awakening = tasks.create_task(awaken(), name="awaken the plugin")
                try:
                    return await call()
                except Exception as error:
                    failure = error
                finally:
                    awakening.cancel()
        raise failure
