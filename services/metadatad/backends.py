"""The back ends: from the configuration and added live. Each is asked again and again whether it still answers.

    [services.content] [services.snapshots.NAME]     the constellation's own
    [proxy_plugins.NAME]                             somebody else's
    `add`                                            live, recorded in the database

A back end that does not answer is listed with its error and costs nobody else anything.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from carina import context
from carina.aio.threads import in_thread
from carina.backends import Backend
from carina.config import PLUGIN_TYPES, Config, socket_path
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
from carina.leases import Lease
from carina.leases.client import RemoteLeaseManager
from carina.platforms import Platform
from carina.rpc.client import Channel, connect
from carina.snapshots.client import RemoteSnapshotter
from metadatad import backendrows
from metadatad.claims import Claims
from metadatad.content import NamespacedContentStore
from metadatad.description import described
from metadatad.peers import Peer
from metadatad.records import Records
from metadatad.removal import ContentRemover, Remover, SnapshotRemover
from metadatad.sides import ContentSide, SnapshotSide
from metadatad.snapshots import NamespacedSnapshotter

PROBE_SECONDS: Final = 2.0
"""How long a back end may take to answer a question of no consequence."""
PAUSE_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 0.5
ABSENT: Final = "carina-probe-of-an-absent-object"
Key = tuple[str, str]
"""Type and name."""

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


@dataclass(slots=True, eq=False)
class _Entry:
    backend: Backend
    stated: Backend
    """As it was configured or added."""
    peer: Peer
    channel: Channel
    remover: Remover | None = None
    snapshotter: NamespacedSnapshotter | None = None
    asked: bool = False
    """Whether it was asked what it exports, since it last answered nothing."""
    slow: bool = False
    """Whether the last probe ran into its limit rather than fail at once."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to have it asked again at once."""

    @property
    def key(self) -> Key:
        return self.backend.type, self.backend.name


class Registry:
    """`carina.backends.BackendRegistry`, and the views of metadatad on what is in it. Made by `open_registry`."""

    def __init__(self, records: Records, config: Config, settings: Settings) -> None:
        self._records = records
        self._settings = settings
        self._entries: dict[Key, _Entry] = {}
        self._claims = Claims()
        self._tasks: asyncio.TaskGroup | None = None
        self._probes: dict[Key, asyncio.Task[None]] = {}
        self.on_health: Callable[[str, bool], None] = lambda name, serving: None
        """Told when a back end begins or stops to answer."""
        for backend in _configured(config):
            self._open(backend)
        self.content = self._open_content()

    def snapshotter(self, name: str) -> NamespacedSnapshotter:
        """Raises InvalidArgument: none of that name (as containerd answers)."""
        entry = self._entries.get(("snapshot", name))
        if entry is None or entry.snapshotter is None:
            raise InvalidArgument(f"snapshotter {name!r} is not loaded")
        return entry.snapshotter

    def removers(self) -> dict[Key, Remover]:
        """See `metadatad.collector.Backends`. The one content store that is in use has an empty name."""
        return {
            ("content", "") if entry.backend.type == "content" else entry.key: entry.remover
            for entry in self._entries.values()
            if entry.remover is not None
        }

    def content_side(self) -> ContentSide:
        """The content store that is in use, for the check."""
        entry = self._entries["content", self._settings.content or "content"]
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
            content = self._entries["content", self._settings.content or "content"]
            if not content.backend.error:
                tasks.create_task(_settle(self.content.settle(), content.peer), name="settle content")

    async def add(self, backend: Backend) -> Backend:
        _validate(backend)
        if (backend.type, backend.name) in self._entries:
            raise AlreadyExists(f"{backend.type} back end {backend.name!r} is there already")
        backend = replace(backend, own=False, configured=False, error="", exports={}, capabilities=())
        entry = self._open(backend)
        try:
            await self._probe(entry)
            if entry.backend.error:
                raise Unavailable(f"{backend.type} back end {backend.name!r} is not usable: {entry.backend.error}")
            await self._records.write(lambda transaction: backendrows.insert(transaction.connection, backend))
        except BaseException:
            self._close(entry)
            raise
        self._watch(entry)
        return entry.backend

    async def remove(self, type: str, name: str) -> None:
        entry = self._entries.get((type, name))
        if entry is None:
            raise NotFound(f"{type} back end {name!r} does not exist")
        if entry.backend.configured:
            raise FailedPrecondition(f"{type} back end {name!r} is in the configuration file: take it out there")
        await self._records.write(lambda transaction: backendrows.delete(transaction.connection, type, name))
        self._close(entry)

    async def list(self) -> list[Backend]:
        """Every back end. One that failed at once is asked again; one that hangs holds up nobody here."""
        async with asyncio.TaskGroup() as tasks:
            for entry in self._entries.values():
                if not entry.asked and not entry.slow:
                    tasks.create_task(self._probe(entry), name=f"probe {entry.backend.name}")
        return [entry.backend for entry in self._entries.values()]

    async def load(self) -> None:
        """Open what was added live before."""
        for backend in await self._records.read(backendrows.all_of):
            if (backend.type, backend.name) not in self._entries:
                self._open(backend)

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
        self.content.close()
        for entry in list(self._entries.values()):
            self._close(entry)

    def _open(self, backend: Backend) -> _Entry:
        settings = self._settings
        noun = "snapshotter" if backend.type == "snapshot" else f"{backend.type} back end"
        peer = Peer(
            name=f"{noun} {backend.name}",
            namespace=backend.namespace,
            lease=backend.lease,
            answer_seconds=settings.answer_seconds,
            work_seconds=settings.work_seconds,
        )
        entry = _Entry(backend=backend, stated=backend, peer=peer, channel=connect(backend.address))
        peer.breaker.on_open = entry.wake.set
        if backend.type == "snapshot":
            remote = RemoteSnapshotter(entry.channel, backend.snapshotter or backend.name)
            entry.snapshotter = NamespacedSnapshotter(
                backend.name, self._records, remote, peer=peer, claims=self._claims
            )
            entry.remover = SnapshotRemover(backend.name, self._records, remote, peer=peer, claims=self._claims)
        self._entries[entry.key] = entry
        return entry

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

    def _close(self, entry: _Entry) -> None:
        self._entries.pop(entry.key, None)
        probe = self._probes.pop(entry.key, None)
        if probe is not None:
            probe.cancel()
        entry.channel.close()

    def _watch(self, entry: _Entry) -> None:
        if self._tasks is not None:
            name = f"watch {entry.backend.name}"
            self._probes[entry.key] = self._tasks.create_task(self._watching(entry), name=name)

    async def _watching(self, entry: _Entry) -> None:
        while True:
            entry.wake.clear()
            await self._probe(entry)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS if entry.backend.error else PAUSE_SECONDS):
                    await entry.wake.wait()

    async def _probe(self, entry: _Entry) -> None:
        """Ask a back end for something that is not there: that goes all the way through it."""
        async with entry.turn:
            before, error = entry.backend.error, ""
            begun = time.monotonic()
            try:
                async with _asking(entry.peer):
                    await self._ask(entry)
                    if not entry.asked:
                        await self._hold(entry)
                    # Each time: another process may have taken its place.
                    found = await described(entry.stated, entry.channel)
                    entry.backend = replace(entry.backend, exports=found.exports, capabilities=found.capabilities)
            except CarinaError as caught:
                error = str(caught) or type(caught).__name__
            entry.slow = bool(error) and time.monotonic() - begun > PROBE_SECONDS / 2
            if error:
                entry.asked = False
            entry.backend = replace(entry.backend, error=error)
            if error != before or (not error and not entry.asked):
                self._changed(entry, before, error)
            entry.asked = not error

    def _changed(self, entry: _Entry, before: str, error: str) -> None:
        self.on_health(entry.backend.name, not error)
        if error:
            log.log(logging.DEBUG if before else logging.WARNING, "%s: %s", entry.peer.name, error)
        elif before:
            log.info("%s answers again", entry.peer.name)

    async def _ask(self, entry: _Entry) -> None:
        with contextlib.suppress(NotFound):
            if entry.backend.type == "snapshot":
                name = entry.backend.snapshotter or entry.backend.name
                await RemoteSnapshotter(entry.channel, name).stat(ABSENT)
            elif entry.backend.type == "content":
                await RemoteContentStore(entry.channel).status(ABSENT)
            else:
                await in_thread(_must_be_socket, entry.backend.address)

    async def _hold(self, entry: _Entry) -> None:
        """Make the standing lease, where there is to be one."""
        if entry.backend.lease:
            with contextlib.suppress(AlreadyExists):
                await RemoteLeaseManager(entry.channel).create(Lease(id=entry.backend.lease))


@contextlib.asynccontextmanager
async def open_registry(records: Records, config: Config, settings: Settings) -> AsyncIterator[Registry]:
    """A registry for the block.

    Raises:
        InvalidArgument: the configuration names a back end that can't be.
    """
    registry = Registry(records, config, settings)
    try:
        await registry.load()
        yield registry
    finally:
        registry.close()


@contextlib.asynccontextmanager
async def _asking(peer: Peer) -> AsyncIterator[None]:
    """A probe is a call of its own, with nothing of whoever caused it."""
    call = context.Call(namespace=peer.namespace or "carina", deadline=time.monotonic() + PROBE_SECONDS)
    with context.use(call):
        async with peer.probing(PROBE_SECONDS):
            yield


async def _settle(settling: Awaitable[None], peer: Peer) -> None:
    try:
        await settling
    except CarinaError as error:
        log.warning("%s: not everything could be settled: %s", peer.name, error)


def _configured(config: Config) -> Iterable[Backend]:
    for service, address in config.services.items():
        kind, _, name = service.partition(".")
        if kind == "content":
            yield Backend(type="content", name="content", address=address, own=True, configured=True)
        elif kind == "snapshots":
            yield _validate(Backend(type="snapshot", name=name, address=address, own=True, configured=True))
    for plugin in config.proxy_plugins.values():
        yield _validate(
            Backend(
                type=plugin.type,
                name=plugin.name,
                address=plugin.address,
                namespace=plugin.namespace,
                snapshotter=plugin.snapshotter,
                lease=plugin.lease,
                platform=plugin.platform,
                exports=plugin.exports,
                capabilities=plugin.capabilities,
                configured=True,
            )
        )


def _validate(backend: Backend) -> Backend:
    if backend.type not in PLUGIN_TYPES:
        raise InvalidArgument(f"back end type {backend.type!r} is not one of {', '.join(PLUGIN_TYPES)}")
    context.validate_identifier(backend.name, "back end name")
    if backend.namespace:
        context.validate_identifier(backend.namespace, "namespace")
    if backend.platform:
        Platform.parse(backend.platform)
    socket_path(backend.address)
    return backend


def _must_be_socket(address: str) -> None:
    path = socket_path(address)
    if not path.is_socket():
        raise Unavailable(f"nothing answers at {address}: there is no socket")
