"""The back ends: from the configuration and added live. Each is asked again and again whether it still answers.

    [services.content] [services.snapshots.NAME]     the constellation's own, or where a swap has moved them
    [proxy_plugins.NAME]                             somebody else's; `reload` takes over what has changed there
    `add`                                            live, recorded in the database

A back end that does not answer is listed with its error and costs nobody else anything.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from carina.aio.threads import in_thread
from carina.backends import Backend, Reloaded
from carina.config import Config, daemon, load, validate_plugin
from carina.content.client import RemoteContentStore
from carina.errors import (
    AlreadyExists,
    CarinaError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from carina.lane.client import RemoteTokenLane
from carina.rpc.client import Channel
from carina.snapshots import Snapshotter
from carina.swap import Place
from metadatad import backendrows, reloading, sides
from metadatad.claims import Claims
from metadatad.content import NamespacedContentStore
from metadatad.entries import Entry, Key
from metadatad.gate import Gated
from metadatad.peers import Peer
from metadatad.records import Records
from metadatad.reloading import Change, configured, plugin_of
from metadatad.removal import ContentRemover, Remover, SnapshotRemover
from metadatad.retired import Retired
from metadatad.sides import ContentSide, SnapshotSide
from metadatad.snapshots import NamespacedSnapshotter
from metadatad.stays import Divided, Stays
from metadatad.swapping import Mover, differ, key_of

PAUSE_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 0.5
SHORTEST_PAUSE: Final = 0.1
LIST_SECONDS: Final = 0.5
"""How long a list waits for back ends that failed at once and are asked again for it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the back ends are used, from `[metadata]`."""

    shared: bool = True
    """Whether knowing a digest is enough to get a blob of another namespace."""
    isolated: frozenset[str] = frozenset()
    """Namespaces whose content is theirs alone, and that get none of others."""
    content: str = ""
    """The proxy plugin that keeps content; empty for the content service."""
    answer_seconds: float = 10.0
    work_seconds: float = 600.0


class Registry:
    """`carina.backends.BackendRegistry`, and the views of metadatad on what is in it. Made by `open_registry`."""

    content: NamespacedContentStore

    def __init__(self, records: Records, config: Config, settings: Settings) -> None:
        self._records = records
        self._settings = settings
        self._entries: dict[Key, Entry] = {}
        self._claims = Claims()
        self._tasks: asyncio.TaskGroup | None = None
        self._watches: dict[Key, asyncio.Task[None]] = {}
        self._retired = Retired()
        self.changing = asyncio.Lock()
        self.mover = Mover(self, records, content=settings.content)
        self.config = config
        self._stays: dict[str, Stays] = {}
        self.on_health: Callable[[str, bool | None], None] = lambda name, serving: None
        """Told when a back end begins or stops to answer, and with None when it is taken out."""
        self.reread: Callable[[], Config] = self._reread
        """Reads and validates the configuration again; it may block."""

    def _reread(self) -> Config:
        return load(self.config.path, root=self.config.root, state=self.config.state)

    def gated(self, name: str) -> Snapshotter:
        """What clients call. Raises InvalidArgument: none of that name."""
        return Gated(self.snapshotter(name), self._entries["snapshot", name].gate)

    def snapshotter(self, name: str) -> NamespacedSnapshotter:
        """Raises InvalidArgument: none of that name (as containerd answers)."""
        entry = self._entries.get(("snapshot", name))
        if entry is None or entry.snapshotter is None:
            raise InvalidArgument(f"snapshotter {name!r} is not loaded")
        return entry.snapshotter

    def removers(self) -> dict[Key, Remover]:
        """See `metadatad.collector.Backends`. The one content store that is in use has an empty name."""
        return {
            ("content", "") if entry.stated.type == "content" else entry.key: entry.remover
            for entry in self._entries.values()
            if entry.remover is not None
        }

    @property
    def _content_entry(self) -> Entry:
        return self._entries["content", self._settings.content or "content"]

    def content_side(self) -> ContentSide:
        """The content store that is in use, for the check."""
        return sides.of_content(self._content_entry, self._claims, self.content.forget)

    def snapshot_sides(self) -> dict[str, SnapshotSide]:
        """Every snapshotter by its name, for the check."""
        return sides.of_snapshotters(self._entries.values(), self._claims)

    def known(self) -> list[Backend]:
        """Every back end as it was when last asked."""
        return [entry.backend for entry in self._entries.values()]

    def processes(self) -> list[tuple[str, Channel]]:
        """Who stands behind the back ends that answer: by the daemon's name, or the plugin's."""
        return [
            (_process(entry.stated), entry.channel)
            for entry in self._entries.values()
            if entry.asked or entry.stated.own
        ]

    async def settle(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for entry in self._entries.values():
                if entry.snapshotter is not None and not entry.backend.error:
                    settling = _settle(entry.snapshotter.settle(), entry.peer)
                    tasks.create_task(settling, name=f"settle {entry.backend.name}")
            content = self._content_entry
            if not content.backend.error:
                tasks.create_task(_settle(self.content.settle(), content.peer), name="settle content")

    async def add(self, backend: Backend) -> Backend:
        backend = replace(backend, own=False, configured=False, error="")
        self._admit(backend)
        entry = self.made(backend)
        try:
            await entry.probe()
            if entry.backend.error:
                raise Unavailable(f"{backend.type} back end {backend.name!r} is not usable: {entry.backend.error}")
            async with self.changing:
                self._admit(backend)
                await self._records.write(lambda transaction: backendrows.insert(transaction.connection, backend))
                self._register(entry)
        except BaseException:
            if self._entries.get(entry.key) is not entry:
                entry.channel.close()
            raise
        self.on_health(backend.name, True)
        self._watch(entry)
        return entry.backend

    def _admit(self, backend: Backend) -> None:
        if any(entry.stated.name == backend.name for entry in self._entries.values()):
            raise AlreadyExists(f"a back end {backend.name!r} is there already")
        plugins = [plugin_of(entry.stated) for entry in self._entries.values() if not entry.stated.own]
        validate_plugin(plugin_of(backend), self.config.services, plugins)

    async def remove(self, type: str, name: str, *, force: bool = False) -> None:
        async with self.changing:
            entry = self._find(type, name)
            if entry.stated.configured:
                raise FailedPrecondition(
                    f"{entry.stated.type} back end {name!r} is in the configuration file: take it out there"
                )
            if entry is self._content_entry:
                raise FailedPrecondition(f"content back end {name!r} holds the content that is in use")
            with self._without([entry]):
                await self._records.write(
                    lambda transaction: backendrows.forget(transaction.connection, entry.stated, force=force)
                )
            self._close(entry)

    def _find(self, type: str, name: str) -> Entry:
        for entry in self._entries.values():
            if entry.stated.name == name and type in {"", entry.stated.type}:
                return entry
        raise NotFound(f"{type or 'a'} back end {name!r} does not exist".replace("a back end", "back end"))

    @contextlib.contextmanager
    def _without(self, entries: Sequence[Entry]) -> Iterator[None]:
        """Let no call begin on these back ends, unless the block fails."""
        for entry in entries:
            if entry.snapshotter is not None:
                entry.snapshotter.gone = True
        try:
            yield
        except BaseException:
            for entry in entries:
                if entry.snapshotter is not None:
                    entry.snapshotter.gone = False
            raise

    async def list(self) -> list[Backend]:
        """Every back end. One that failed at once is asked again; one that hangs holds up nobody here."""
        failed = [entry for entry in self._entries.values() if not entry.asked and not entry.slow]
        if self._tasks is None:
            async with asyncio.TaskGroup() as tasks:
                for entry in failed:
                    tasks.create_task(entry.probe(), name=f"probe {entry.stated.name}")
        elif failed:
            probes = [self._tasks.create_task(entry.probe(), name=f"probe {entry.stated.name}") for entry in failed]
            await asyncio.wait(probes, timeout=LIST_SECONDS)
        return [entry.backend for entry in self._entries.values()]

    async def reload(self) -> Reloaded:
        async with self.changing:
            new = await in_thread(self.reread)
            live = [entry.stated for entry in self._entries.values() if not entry.stated.configured]
            change = reloading.change(self.config, new, live=live, content=self._settings.content)
            self.mover.must_be_home(change.changed)
            moves = [self.mover.homeward(service, new) for service in change.moved]
            gone = [self._entries[backend.type, backend.name] for backend in change.removed]
            with self._without(gone):
                said = await self.mover.carry_out(moves, lambda done: reloading.record(done.connection, change))
            self.config = new
            fresh = self._apply(change)
        if fresh or moves:
            await self.list()
        return Reloaded(path=str(new.path or ""), changes=[*change.said, *said], later=change.later)

    def found(self, service: str) -> Entry | None:
        """See `metadatad.swapping.Registry`, as for the next two."""
        return self._entries.get(key_of(service, self._settings.content))

    def others(self, backend: Backend) -> Sequence[Backend]:
        return [entry.stated for entry in self._entries.values() if entry.key != (backend.type, backend.name)]

    def moved(self, entry: Entry | None, stated: Backend, stays: Mapping[str, Place]) -> None:
        if entry is None:
            self._watch(self._open(stated))
            return
        if stated.type == "diff" and stated.own:  # our own differ is in imaged
            self._close(entry)
            return
        old = entry.restate(stated)
        if stated.type == "snapshot":
            self._stays.setdefault(stated.name, Stays(stated.name, self._records, {})).places = dict(stays)
        self._build(entry)
        if stated.type == "content":
            self.content.move(RemoteContentStore(entry.channel), entry.peer, RemoteTokenLane(entry.channel))
            entry.remover = self._content_remover(entry)
        if old is not None:
            self._retired.add(old, stated.name, self._tasks)

    def _apply(self, change: Change) -> bool:
        for backend in change.removed:
            self._close(self._entries[backend.type, backend.name])
        for backend in change.changed:
            entry = self._entries[backend.type, backend.name]
            entry.home, old = backend, entry.restate(backend)
            self._build(entry)
            if old is not None:
                self._retired.add(old, entry.stated.name, self._tasks)
        for backend in change.added:
            self._watch(self._open(backend))
        return bool(change.changed or change.added)

    async def begin(self) -> None:
        """Open what is configured, and what was added live before.

        Raises:
            InvalidArgument: the configuration names a back end that can't be.
        """
        for backend in configured(self.config):
            await self._open_where_it_is(backend)
        if (await self.mover.placed(own := differ(self.config))) != own:
            await self._open_where_it_is(own)
        for backend in await self._records.read(backendrows.all_of):
            if all(entry.stated.name != backend.name for entry in self._entries.values()):
                await self._open_where_it_is(backend)
            else:
                log.warning(
                    "%s back end %s was added live, and is now in the configuration", backend.type, backend.name
                )
        self.content = self._open_content()

    async def _open_where_it_is(self, home: Backend) -> None:
        """Open a back end at the place that it was moved to, if it was."""
        stays = await self.mover.stays(home)
        if stays:
            self._stays[home.name] = Stays(home.name, self._records, stays)
        self._open(await self.mover.placed(home)).home = home

    async def serve(self) -> None:
        """Ask the back ends again and again, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for entry in list(self._entries.values()):
                    self._watch(entry)
                await asyncio.Event().wait()
        finally:
            self._tasks = None

    def close(self) -> None:
        if hasattr(self, "content"):
            self.content.close()
        for entry in list(self._entries.values()):
            self._close(entry)
        self._retired.close()
        for stays in self._stays.values():
            stays.close()

    def _open(self, backend: Backend) -> Entry:
        entry = self.made(backend)
        self._register(entry)
        return entry

    def made(self, backend: Backend) -> Entry:
        """An entry that is not in the registry."""
        settings = self._settings
        return Entry(backend, answer_seconds=settings.answer_seconds, work_seconds=settings.work_seconds)

    def _register(self, entry: Entry) -> None:
        entry.on_health = lambda name, serving: self.on_health(name, serving)
        self._build(entry)
        self._entries[entry.key] = entry

    def _build(self, entry: Entry) -> None:
        """What is built on a snapshotter's channel: made, or put on the channel that it has now."""
        if entry.stated.type != "snapshot":
            return
        name = entry.stated.name
        remote: Snapshotter = entry.remote
        if name in self._stays:  # it was moved once
            remote = Divided(remote, self._stays[name])
        if entry.snapshotter is None:
            entry.snapshotter = NamespacedSnapshotter(name, self._records, remote, peer=entry.peer, claims=self._claims)
        else:
            entry.snapshotter.backend, entry.snapshotter.peer = remote, entry.peer
        entry.remover = SnapshotRemover(name, self._records, remote, peer=entry.peer, claims=self._claims)

    def _open_content(self) -> NamespacedContentStore:
        name = self._settings.content or "content"
        entry = self._entries.get(("content", name))
        if entry is None:
            raise InvalidArgument(f"metadata.content: there is no content plugin {name!r}")
        entry.remover = self._content_remover(entry)
        return NamespacedContentStore(
            self._records,
            RemoteContentStore(entry.channel),
            peer=entry.peer,
            claims=self._claims,
            shared=self._settings.shared,
            isolated=self._settings.isolated,
            lane=RemoteTokenLane(entry.channel),
            gate=entry.gate,
        )

    def _content_remover(self, entry: Entry) -> Remover:
        remote = RemoteContentStore(entry.channel)
        return ContentRemover(self._records, remote, peer=entry.peer, claims=self._claims)

    def _close(self, entry: Entry) -> None:
        self._entries.pop(entry.key, None)
        watch = self._watches.pop(entry.key, None)
        if watch is not None:
            watch.cancel()
        self.on_health(entry.stated.name, None)
        entry.channel.close()

    def _watch(self, entry: Entry) -> None:
        if self._tasks is not None:
            name = f"watch {entry.stated.name}"
            self._watches[entry.key] = self._tasks.create_task(self._watching(entry), name=name)

    async def _watching(self, entry: Entry) -> None:
        while True:
            entry.wake.clear()
            await entry.probe()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS if entry.backend.error else PAUSE_SECONDS):
                    await entry.wake.wait()
                    await asyncio.sleep(SHORTEST_PAUSE)


def _process(backend: Backend) -> str:
    if not backend.own:
        return backend.name
    return daemon("content" if backend.type == "content" else f"snapshots.{backend.name}")


@contextlib.asynccontextmanager
async def open_registry(records: Records, config: Config, settings: Settings) -> AsyncIterator[Registry]:
    """A registry for the block.

    Raises:
        InvalidArgument: the configuration names a back end that can't be.
    """
    registry = Registry(records, config, settings)
    try:
        await registry.begin()
        yield registry
    finally:
        registry.close()


async def _settle(settling: Awaitable[None], peer: Peer) -> None:
    try:
        await settling
    except CarinaError as error:
        log.warning("%s: not everything could be settled: %s", peer.name, error)
