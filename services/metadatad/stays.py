"""A snapshotter that was moved, together with the places where some of its snapshots stayed.

Active snapshots and views stay when a snapshotter is moved: they may be mounted, and a copy would be behind at once.
Each is called where it is until it is removed. What is prepared on one that stays, or committed from it, is made beside
it. Where each is, is on the disk before it is made there.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace

from carina import context
from carina.errors import FailedPrecondition, NotFound
from carina.mount import Mount
from carina.rpc.client import Channel, connect
from carina.snapshots import Info, Snapshotter, Usage
from carina.snapshots.client import RemoteSnapshotter
from carina.swap import Place
from metadatad import swaprows
from metadatad.records import Records

Labels = Mapping[str, str]


class Stays:
    """Where what stayed of one snapshotter is, and channels to there."""

    def __init__(self, snapshotter: str, records: Records, places: Mapping[str, Place]) -> None:
        self.places = dict(places)
        """Back-end key -> place."""
        self._snapshotter = snapshotter
        self._records = records
        self._channels: dict[Place, Channel] = {}

    def remote(self, place: Place) -> RemoteSnapshotter:
        if place not in self._channels:
            self._channels[place] = connect(place.address)
        return RemoteSnapshotter(self._channels[place], place.snapshotter or self._snapshotter)

    async def add(self, key: str, place: Place) -> None:
        name = self._snapshotter
        await self._records.write(lambda transaction: swaprows.stay(transaction.connection, name, [key], place))
        self.places[key] = place

    async def drop(self, key: str) -> None:
        name = self._snapshotter
        await self._records.write(lambda transaction: swaprows.leave(transaction.connection, name, [key]))
        self.places.pop(key, None)

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()


class Divided:
    """`Snapshotter` over the present back end and what stays elsewhere."""

    def __init__(self, here: Snapshotter, stays: Stays) -> None:
        self._here = here
        self._stays = stays

    @contextlib.contextmanager
    def _at(self, key: str, place: Place | None = None) -> Iterator[Snapshotter]:
        place = place or self._stays.places.get(key)
        if place is None:
            yield self._here
            return
        call = context.current()
        namespace = place.namespace or key.partition("/")[0]  # keys begin with the namespace of their record
        with context.use(replace(call, namespace=namespace, lease=place.lease or None)):
            yield self._stays.remote(place)

    async def prepare(self, key: str, parent: str = "", labels: Labels | None = None) -> list[Mount]:
        await self._follow(key, parent)
        with self._at(key) as there:
            return await there.prepare(key, parent, labels)

    async def view(self, key: str, parent: str = "", labels: Labels | None = None) -> list[Mount]:
        await self._follow(key, parent)
        with self._at(key) as there:
            return await there.view(key, parent, labels)

    async def _follow(self, key: str, source: str) -> None:
        place = self._stays.places.get(source)
        if place is not None:
            await self._stays.add(key, place)

    async def mounts(self, key: str) -> list[Mount]:
        with self._at(key) as there:
            return await there.mounts(key)

    async def commit(self, name: str, key: str, labels: Labels | None = None, parent: str = "") -> None:
        if parent and self._stays.places.get(parent) != self._stays.places.get(key):
            raise FailedPrecondition(
                f"snapshot {key} can't be put on {parent}: the snapshotter was moved between them, begin again"
            )
        await self._follow(name, key)
        with self._at(key) as there:
            await there.commit(name, key, labels, parent)
        if key in self._stays.places:
            await self._stays.drop(key)

    async def remove(self, key: str) -> None:
        try:
            with self._at(key) as there:
                await there.remove(key)
        except NotFound:
            await self._gone(key)
            raise
        await self._gone(key)

    async def _gone(self, key: str) -> None:
        if key in self._stays.places:
            await self._stays.drop(key)

    async def stat(self, key: str) -> Info:
        with self._at(key) as there:
            return await there.stat(key)

    async def update(self, info: Info, fields: Sequence[str] = ()) -> Info:
        with self._at(info.name) as there:
            return await there.update(info, fields)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        async for info in self._here.walk(filters):
            if info.name not in self._stays.places:
                yield info
        for place in set(self._stays.places.values()):
            some = next(key for key, at in self._stays.places.items() if at == place)
            with self._at(some, place) as there:
                found = [info async for info in there.walk(filters)]
            for info in found:
                if self._stays.places.get(info.name) == place:
                    yield info

    async def usage(self, key: str) -> Usage:
        with self._at(key) as there:
            return await there.usage(key)

    async def cleanup(self) -> None:
        await self._here.cleanup()

    async def close(self) -> None:
        """The channels are the registry's."""
