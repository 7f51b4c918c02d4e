"""A gate before a back end: a move closes it, waits for the calls that are inside, and lets others go on after it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from carina.errors import Unavailable
from carina.mount import Mount
from carina.snapshots import Info, Snapshotter, Usage

WAIT_SECONDS: Final = 60.0
"""How long a call waits at a closed gate: far longer than one is ever closed."""

Labels = Mapping[str, str]


class Gate:
    def __init__(self, name: str) -> None:
        self._name = name
        self._inside = 0
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()

    @contextlib.asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """Be inside for the block, once the gate is open.

        Raises:
            Unavailable: it stays closed.
        """
        while not self._open.is_set():
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    await self._open.wait()
            except TimeoutError as error:
                raise Unavailable(f"{self._name} is being moved, and that does not end") from error
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @contextlib.asynccontextmanager
    async def closed(self, seconds: float) -> AsyncIterator[None]:
        """Let nobody in for the block, and nobody be inside.

        Raises:
            Unavailable: calls that are inside don't end in time.
        """
        self._open.clear()
        try:
            try:
                async with asyncio.timeout(seconds):
                    await self._empty.wait()
            except TimeoutError as error:
                raise Unavailable(f"{self._inside} calls to {self._name} are under way, and do not end") from error
            yield
        finally:
            self._open.set()


class Gated:
    """`Snapshotter` behind a gate."""

    def __init__(self, inner: Snapshotter, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate

    async def prepare(self, key: str, parent: str = "", labels: Labels | None = None) -> list[Mount]:
        async with self._gate.passing():
            return await self._inner.prepare(key, parent, labels)

    async def view(self, key: str, parent: str = "", labels: Labels | None = None) -> list[Mount]:
        async with self._gate.passing():
            return await self._inner.view(key, parent, labels)

    async def mounts(self, key: str) -> list[Mount]:
        async with self._gate.passing():
            return await self._inner.mounts(key)

    async def commit(self, name: str, key: str, labels: Labels | None = None, parent: str = "") -> None:
        async with self._gate.passing():
            await self._inner.commit(name, key, labels, parent)

    async def remove(self, key: str) -> None:
        async with self._gate.passing():
            await self._inner.remove(key)

    async def stat(self, key: str) -> Info:
        async with self._gate.passing():
            return await self._inner.stat(key)

    async def update(self, info: Info, fields: Sequence[str] = ()) -> Info:
        async with self._gate.passing():
            return await self._inner.update(info, fields)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        async with self._gate.passing():
            found = [info async for info in self._inner.walk(filters)]
        for info in found:
            yield info

    async def usage(self, key: str) -> Usage:
        async with self._gate.passing():
            return await self._inner.usage(key)

    async def cleanup(self) -> None:
        async with self._gate.passing():
            await self._inner.cleanup()

    async def close(self) -> None:
        await self._inner.close()
