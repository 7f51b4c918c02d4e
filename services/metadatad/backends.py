"""The back ends: from the configuration and added live. Each is asked again and again whether it still answers.

    [services.content] [services.snapshots.NAME]     the constellation's own
    [proxy_plugins.NAME]                             somebody else's; `reload` takes over what has changed there
    `add`                                            live, recorded in the database

A back end that does not answer is listed with its error and costs nobody else anything.
"""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from carina.aio.threads import in_thread
from carina.backends import Backend, Reloaded
from carina.config import Config, load, validate_plugin
from carina.content.client import RemoteContentStore
from carina.errors import (
    AlreadyExists,
    CarinaError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from carina.integrity.client import RemoteIntegrity
from carina.lane.client import RemoteTokenLane
from carina.rpc.client import Channel
from metadatad import backendrows, reloading
from metadatad.claims import Claims
from metadatad.content import NamespacedContentStore
from metadatad.entries import Entry, Key
from metadatad.peers import Peer
from metadatad.records import Records
from metadatad.reloading import Change, configured, plugin_of
from metadatad.removal import ContentRemover, Remover, SnapshotRemover
from metadatad.sides import ContentSide, SnapshotSide
from metadatad.snapshots import NamespacedSnapshotter

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
    content: str = ""
    """The proxy plugin that keeps content; empty for the content service."""
    answer_seconds: float = 10.0
    work_seconds: float = 600.0


class Registry:
    """`carina.backends.BackendRegistry`, and the views of metadatad on what is in it. Made by `open_registry`."""

    content: NamespacedContentStore

    def __init__(self, records: Records, config: Config, settings: Settings) -> None:
        self._records = records
        self._config = config
        self._settings = settings
        self._entries: dict[Key, Entry] = {}
        self._claims = Claims()
        self._tasks: asyncio.TaskGroup | None = None
        self._watches: dict[Key, asyncio.Task[None]] = {}
        self._retired: set[Channel] = set()
        self._changing = asyncio.Lock()
        self.on_health: Callable[[str, bool | None], None] = lambda name, serving: None
        """Told when a back end begins or stops to answer, and with None when it is taken out."""
        self.reread: Callable[[], Config] = self._reread
        """Reads and validates the configuration again; it may block."""

    def _reread(self) -> Config:
        return load(self._config.path, root=self._config.root, state=self._config.state)

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
        entry = self._content_entry
        assert entry.remover is not None
        return ContentSide(
            store=RemoteContentStore(entry.channel),
            integrity=RemoteIntegrity(entry.channel),
            peer=entry.peer,
            claims=self._claims,
            remover=entry.remover,
            own=entry.backend.own,
            forget=self.content.forget,
        )

    def snapshot_sides(self) -> dict[str, SnapshotSide]:
        """Every snapshotter by its name, for the check."""
        return {
            entry.backend.name: SnapshotSide(
                name=entry.backend.name,
                snapshotter=entry.snapshotter.backend,
                peer=entry.peer,
                claims=self._claims,
                remover=entry.remover,
                own=entry.backend.own,
            )
            for entry in self._entries.values()
            if entry.snapshotter is not None and entry.remover is not None
        }

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
        entry = self._made(backend)
        try:
            await entry.probe()
            if entry.backend.error:
                raise Unavailable(f"{backend.type} back end {backend.name!r} is not usable: {entry.backend.error}")
            async with self._changing:
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
        validate_plugin(plugin_of(backend), self._config.services, plugins)

    async def remove(self, type: str, name: str, *, force: bool = False) -> None:
        async with self._changing:
            entry = self._find(type, name)
            if entry.stated.configured:
                raise FailedPrecondition(
                    f"{entry.stated.type} back end {name!r} is in the configuration file: take it out there"
                )
            if entry is self._content_entry:
                raise FailedPrecondition(f"content back end {name!r} holds the content that is in use")
            with self._without([entry]):
                await self._records.write(
                    lambda transaction: _forget(transaction.connection, entry.stated, force=force)
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
        async with self._changing:
            new = await in_thread(self.reread)
            live = [entry.stated for entry in self._entries.values() if not entry.stated.configured]
            change = reloading.change(self._config, new, live=live, content=self._settings.content)
            gone = [self._entries[backend.type, backend.name] for backend in change.removed]
            with self._without(gone):
                await self._records.write(lambda transaction: reloading.record(transaction.connection, change))
            self._config = new
            fresh = self._apply(change)
        if fresh:
            await self.list()
        return Reloaded(path=str(new.path or ""), changes=change.said, later=change.later)

    def _apply(self, change: Change) -> bool:
        for backend in change.removed:
            self._close(self._entries[backend.type, backend.name])
        for backend in change.changed:
            entry = self._entries[backend.type, backend.name]
            old = entry.restate(backend)
            self._build(entry)
            if old is not None:
                self._retire(old, entry.stated.name)
        for backend in change.added:
            self._watch(self._open(backend))
        return bool(change.changed or change.added)

    async def begin(self) -> None:
        """Open what is configured, and what was added live before.

        Raises:
            InvalidArgument: the configuration names a back end that can't be.
        """
        for backend in configured(self._config):
            self._open(backend)
        for backend in await self._records.read(backendrows.all_of):
            if all(entry.stated.name != backend.name for entry in self._entries.values()):
                self._open(backend)
            else:
                log.warning(
                    "%s back end %s was added live, and is now in the configuration", backend.type, backend.name
                )
        self.content = self._open_content()

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
        for channel in self._retired:
            channel.close()

    def _open(self, backend: Backend) -> Entry:
        entry = self._made(backend)
        self._register(entry)
        return entry

    def _made(self, backend: Backend) -> Entry:
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
        remote, name = entry.remote, entry.stated.name
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
        remote = RemoteContentStore(entry.channel)
        entry.remover = ContentRemover(self._records, remote, peer=entry.peer, claims=self._claims)
        return NamespacedContentStore(
            self._records,
            remote,
            peer=entry.peer,
            claims=self._claims,
            shared=self._settings.shared,
            lane=RemoteTokenLane(entry.channel),
        )

    def _close(self, entry: Entry) -> None:
        self._entries.pop(entry.key, None)
        watch = self._watches.pop(entry.key, None)
        if watch is not None:
            watch.cancel()
        self.on_health(entry.stated.name, None)
        entry.channel.close()

    def _retire(self, channel: Channel, name: str) -> None:
        """Close a channel when what is under way on it has had its time."""

        async def wait() -> None:
            await asyncio.sleep(self._settings.work_seconds)
            self._retired.discard(channel)
            channel.close()

        self._retired.add(channel)
        if self._tasks is not None:
            self._tasks.create_task(wait(), name=f"retire {name}")

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


def _forget(connection: sqlite3.Connection, backend: Backend, *, force: bool) -> None:
    needed = backendrows.dependents(connection, backend.type, backend.name)
    if needed and not force:
        raise FailedPrecondition(f"{backend.type} back end {backend.name!r} is needed: {needed}")
    if backend.type == "snapshot":
        backendrows.forget_snapshots(connection, backend.name)
    backendrows.delete(connection, backend.type, backend.name)
