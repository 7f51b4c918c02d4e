"""Back ends moved to other places, live: what the new ones must have, and the order in which a move happens.

    asked       the new ones answer, and are of their types
    compared    they have what is recorded, while everything goes on
    closed      no call begins, those inside end (`metadatad.gate`), nothing is left under way
    compared    what was recorded meanwhile
    recorded    where the back ends are, in the transaction that proves all this again
    moved       calls begin again, and go to the new ones

A kill before `recorded` leaves the old places, one after it the new ones: the next start reads them.
"""

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Final, Protocol

from carina import context, faults
from carina.backends import Backend
from carina.config import Config
from carina.content.client import RemoteContentStore
from carina.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from carina.snapshots import Kind
from carina.swap import Blob, Lacking, Place, Snapshot
from metadatad import swaprows
from metadatad.entries import Entry, Key
from metadatad.gate import Gate
from metadatad.records import Records, Transaction
from metadatad.reloading import configured
from metadatad.swaprows import place_of

QUIET_SECONDS: Final = 10.0
"""How long calls that are under way have to end, while others wait."""
LEFT_SECONDS: Final = 2.0
"""How long ingests and unpackings that are under way have to end: first with calls going on, and then without."""
PAUSE_SECONDS: Final = 0.05
ROUNDS: Final = 5
"""How often what was recorded meanwhile is compared before the move is given up."""
PAGE: Final = 500
DIFFER: Final = "walking"
"""The name of our own differ, and of what takes its place."""
log = logging.getLogger(__name__)
_NOBODY: Final = "carina"
"""The namespace of calls to a back end that is told none."""


class Registry(Protocol):
    """Of `metadatad.backends.Registry` what a move needs."""

    @property
    def config(self) -> Config:
        """The configuration that counts."""

    @property
    def changing(self) -> asyncio.Lock:
        """Held by whoever changes which back ends there are, or where."""

    def found(self, service: str) -> Entry | None:
        """The back end of a service's name; None without."""

    def made(self, backend: Backend) -> Entry:
        """A back end to be asked, which is not in the registry."""

    def others(self, backend: Backend) -> Sequence[Backend]:
        """Every other back end of the registry."""

    async def list(self) -> Sequence[Backend]:
        """Ask those that were not asked yet."""

    def moved(self, entry: Entry | None, stated: Backend, stays: Mapping[str, Place]) -> None:
        """Use a back end at its new place from now on. `stays`: which snapshots are elsewhere, and where."""


@dataclass(slots=True, kw_only=True)
class Move:
    """One back end on its way."""

    service: str
    entry: Entry | None
    stated: Backend
    """As it is at the new place."""
    home: Place
    """Where the configuration has it."""
    gate: Gate
    candidate: Entry
    seen: dict[str, Blob | Snapshot] = field(default_factory=dict)
    """What is recorded, and at the new place, as far as was looked."""

    @property
    def place(self) -> Place:
        return place_of(self.stated)

    @property
    def old(self) -> Place:
        return self.home if self.entry is None else place_of(self.entry.stated)


class Mover:
    """`carina.swap.Swapper` of the back ends."""

    def __init__(self, registry: Registry, records: Records, *, content: str) -> None:
        self._registry = registry
        self._records = records
        self._content = content

    async def swap(self, services: Sequence[str], to: Place | None) -> Sequence[str]:
        async with self._registry.changing:
            moves = [self._planned_to(service, to) for service in dict.fromkeys(services)]
            for move in moves:
                if move.old == move.place:
                    move.candidate.channel.close()
            said = await self.carry_out([move for move in moves if move.old != move.place])
        await self._registry.list()
        return said

    async def missing(self, service: str, to: Place) -> AsyncIterator[Lacking]:
        move = self._planned_to(service, to)
        try:
            await ask(move)
            async for page in self.lacking(move):
                yield page
        finally:
            move.candidate.channel.close()

    async def placed(self, home: Backend) -> Backend:
        """A back end at the place that it was moved to, unless the configuration was changed since then."""
        moved = await self._records.read(swaprows.moved)
        place, before = moved.get((home.type, home.name), (None, None))
        if place is None:
            return home
        if before != place_of(home):
            log.warning("%s %s is where the configuration has it now, and not at %s", home.type, home.name, place)
            await self._records.write(lambda transaction: swaprows.forget(transaction.connection, home.type, home.name))
            return home
        return replace(home, own=False, **asdict(place))

    async def stays(self, home: Backend) -> Mapping[str, Place]:
        """Where snapshots of a snapshotter are that is somewhere else."""
        if home.type != "snapshot":
            return {}

        def read(transaction: Transaction) -> Mapping[str, Place]:
            swaprows.tidy(transaction.connection)
            return swaprows.stays(transaction.connection, home.name)

        return await self._records.write(read)

    def homeward(self, service: str, config: Config) -> Move:
        """A service's move to where a configuration has it."""
        home = self._home(service, config)
        return self.planned(service, home, place_of(home))

    def must_be_home(self, backends: Sequence[Backend]) -> None:
        """Raises FailedPrecondition: one is somewhere else, and is to be changed where it was."""
        for backend in backends:
            found = self._registry.found(f"snapshots.{backend.name}") if backend.type == "snapshot" else None
            if found is not None and place_of(found.stated) != place_of(found.home):
                back = f"`carina swap snapshots.{backend.name} --back`"
                raise FailedPrecondition(f"proxy_plugins.{backend.name} was swapped: {back} comes first")

    def _planned_to(self, service: str, to: Place | None) -> Move:
        home = self._home(service, self._registry.config)
        place = to or place_of(home)
        return self.planned(service, replace(home, **asdict(place)), place_of(home))

    def _home(self, service: str, config: Config) -> Backend:
        """A service's back end as a configuration, or whoever added it, has it. Raises NotFound."""
        if service == "diff":
            return differ(config)
        key = key_of(service, self._content)
        for backend in configured(config):
            if (backend.type, backend.name) == key:
                return backend
        entry = self._registry.found(service)
        if entry is None:
            raise NotFound(f"there is no service {service!r} to move: expected content, snapshots.NAME or diff")
        return entry.home

    def planned(self, service: str, stated: Backend, home: Place) -> Move:
        """Raises InvalidArgument: the place is none, or is another back end's."""
        stated = replace(stated, own=stated.own and place_of(stated) == home, error="")
        place_of(stated).validate()
        if stated.snapshotter and stated.type != "snapshot":
            raise InvalidArgument(f"{service}: a snapshotter's name is for snapshotters")
        for other in self._registry.others(stated):
            if other.type == stated.type and _counterpart(other) == _counterpart(stated):
                raise InvalidArgument(f"{service}: {place_of(stated)} is back end {other.name!r} already")
        entry = self._registry.found(service)
        return Move(
            service=service,
            entry=entry,
            stated=stated,
            home=home,
            gate=Gate(service) if entry is None else entry.gate,
            candidate=self._registry.made(stated),
        )

    async def carry_out(self, moves: Sequence[Move], also: Callable[[Transaction], None] = lambda _: None) -> list[str]:
        """Move back ends, and do what else is to be recorded in the same transaction. Says what changed.

        Raises:
            Unavailable: a new one does not answer, or calls do not end.
            FailedPrecondition: a new one is something else or lacks something, or something is under way.
        """
        try:
            await self._old_ones_end(moves)
            for move in moves:
                await ask(move)
                await self._compare(move)
            faults.point("metadatad.swap.compared")
            async with contextlib.AsyncExitStack() as stack:
                for move in moves:
                    await stack.enter_async_context(move.gate.closed(QUIET_SECONDS))
                stays = await self._record(moves, also)
                faults.point("metadatad.swap.recorded")
                for move in moves:
                    self._registry.moved(move.entry, move.stated, stays.get(move.service, {}))
            faults.point("metadatad.swap.moved")
        finally:
            for move in moves:
                move.candidate.channel.close()
        return [_said(move, stays.get(move.service, {})) for move in moves]

    async def _record(self, moves: Sequence[Move], also: Callable[[Transaction], None]) -> dict[str, dict[str, Place]]:
        """Where snapshots stay, by service."""
        limit = time.monotonic() + LEFT_SECONDS
        rounds = 0
        while rounds < ROUNDS:
            for move in moves:
                await self._compare(move)
            faults.point("metadatad.swap.closed")
            try:
                return await self._records.write(lambda transaction: _proven(transaction, moves, also))
            except _Behind:
                rounds += 1
            except _UnderWay:
                if time.monotonic() > limit:
                    raise
                await asyncio.sleep(PAUSE_SECONDS)
        raise Unavailable("records change faster than they can be compared: try again")

    async def _old_ones_end(self, moves: Sequence[Move]) -> None:
        """What is under way has a moment to end, with calls going on. Raises FailedPrecondition: it does not."""

        def busy(connection: sqlite3.Connection) -> dict[str, str]:
            return {
                one: move.service
                for move in moves
                for one in swaprows.in_flight(connection, move.stated.type, move.stated.name)
            }

        limit = time.monotonic() + LEFT_SECONDS
        left = await self._records.read(busy)
        while left and time.monotonic() < limit:
            await asyncio.sleep(PAUSE_SECONDS)
            now = await self._records.read(busy)
            left = {one: service for one, service in left.items() if one in now}
        if left:
            raise _UnderWay(next(iter(left.values())), list(left))

    async def _compare(self, move: Move) -> None:
        """Raises FailedPrecondition: the new place lacks something that is recorded."""
        missing: list[str] = []
        async for page in self.lacking(move):
            missing += [f"content {blob.digest}" for blob in page.blobs]
            missing += [f"snapshot {snapshot.name}" for snapshot in page.snapshots]
        if missing:
            command = f"carina {move.service.partition('.')[0]} copy"
            raise FailedPrecondition(
                f"{move.service} can't be moved: {move.place} lacks {swaprows.named(missing)}; "
                f"`{command}` brings what is missing"
            )

    async def lacking(self, move: Move) -> AsyncIterator[Lacking]:
        """What is recorded and was not seen at the new place. What is there in another form is refused.

        Raises:
            FailedPrecondition: the new place has something else under that name.
        """
        wanted = await self._records.read(lambda connection: _recorded(connection, move.stated))
        unseen = {key: one for key, one in wanted.items() if move.seen.get(key) != one}
        if unseen:
            await _look(move, unseen)
        rest = [one for key, one in unseen.items() if key not in move.seen]
        source = move.old
        yield Lacking(source=source)
        for start in range(0, len(rest), PAGE):
            some = rest[start : start + PAGE]
            yield Lacking(
                source=source,
                blobs=[one for one in some if isinstance(one, Blob)],
                snapshots=[one for one in some if isinstance(one, Snapshot)],
            )


def differ(config: Config) -> Backend:
    """Our own differ, which is no back end of ours as long as it is in imaged."""
    return Backend(type="diff", name=DIFFER, address=config.services.get("images", ""), own=True, configured=True)


def key_of(service: str, content: str) -> Key:
    """Type and name of a service's back end; `content` is the plugin that keeps the content, if one does."""
    kind, _, name = service.partition(".")
    if service == "content":
        return "content", content or "content"
    return ("snapshot", name) if kind == "snapshots" else (kind, DIFFER)


class _Behind(Exception):
    """Something was recorded that was not looked for yet."""


class _UnderWay(FailedPrecondition):
    def __init__(self, service: str, found: Sequence[str]) -> None:
        super().__init__(f"{service} can't be moved: something is under way: {swaprows.named(found)}")


def _recorded(connection: sqlite3.Connection, backend: Backend) -> dict[str, Blob | Snapshot]:
    if backend.type == "content":
        return dict(swaprows.blobs(connection))
    if backend.type == "snapshot":
        return dict(swaprows.committed(connection, backend.name))
    return {}


def _proven(
    transaction: Transaction, moves: Sequence[Move], also: Callable[[Transaction], None]
) -> dict[str, dict[str, Place]]:
    connection, stays = transaction.connection, {}
    for move in moves:
        if busy := swaprows.in_flight(connection, move.stated.type, move.stated.name):
            raise _UnderWay(move.service, busy)
        if any(move.seen.get(key) != one for key, one in _recorded(connection, move.stated).items()):
            raise _Behind
        type, name = move.stated.type, move.stated.name
        swaprows.move(connection, type, name, place=move.place, home=move.home)
        if type == "snapshot":
            stays[move.service] = swaprows.stayed(connection, name, old=move.old, new=move.place)
    also(transaction)
    return stays


async def ask(move: Move) -> None:
    """Raises Unavailable: what is at the new place does not answer, or is something else."""
    await move.candidate.probe()
    error = move.candidate.backend.error
    if error:
        raise Unavailable(f"{move.service} can't be moved to {move.place}: {error}")


async def _look(move: Move, unseen: Mapping[str, Blob | Snapshot]) -> None:
    peer, channel = move.candidate.peer, move.candidate.channel
    with context.use(context.Call(namespace=_NOBODY)):
        async with peer.listing() as came:
            if move.stated.type == "content":
                async for info in RemoteContentStore(channel).walk():
                    came()
                    _compared(move, unseen, Blob(digest=info.digest, size=info.size))
                return
            async for snapshot in move.candidate.remote.walk():
                came()
                if snapshot.kind is Kind.COMMITTED:
                    _compared(move, unseen, Snapshot(name=snapshot.name, parent=snapshot.parent))


def _compared(move: Move, unseen: Mapping[str, Blob | Snapshot], there: Blob | Snapshot) -> None:
    key = there.digest if isinstance(there, Blob) else there.name
    wanted = unseen.get(key)
    if isinstance(wanted, Snapshot) and isinstance(there, Snapshot):
        if wanted.parent != there.parent:
            raise FailedPrecondition(
                f"{move.service} can't be moved: at {move.place} snapshot {key} stands on "
                f"{there.parent or 'nothing'} and not on {wanted.parent or 'nothing'}"
            )
    elif isinstance(wanted, Blob) and isinstance(there, Blob) and wanted.size != there.size:
        raise FailedPrecondition(
            f"{move.service} can't be moved: at {move.place} content {key} is {there.size} bytes long and not "
            f"{wanted.size}"
        )
    if wanted is not None:
        move.seen[key] = wanted


def _counterpart(backend: Backend) -> tuple[str, str, str]:
    name = backend.snapshotter or backend.name if backend.type == "snapshot" else ""
    return backend.address.removeprefix("unix://"), backend.namespace, name


def _said(move: Move, stays: Mapping[str, Place]) -> str:
    said = f"{move.service} is at {move.place} now"
    for place in sorted({str(place) for place in stays.values()}):
        count = sum(str(at) == place for at in stays.values())
        said += f"; {count} snapshot{'s' if count > 1 else ''} in use stay{'' if count > 1 else 's'} at {place}"
    return said
