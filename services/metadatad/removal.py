"""What back ends are to remove, removed: one `Remover` for each, so that a slow one holds up only itself.

Only what has a tombstone is touched, and only after a look at the records under the object's claim.
A tombstone goes when the back end no longer has the object; what fails stays for the next time,
and so does what a call that was given up may make yet.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from carina import faults
from carina.content import ContentStore
from carina.digest import Digest
from carina.errors import CarinaError, DeadlineExceeded, FailedPrecondition, NotFound, Unavailable, Unimplemented
from carina.snapshots import Snapshotter
from carina.sqlite import now
from metadatad import tombstones
from metadatad.claims import Claims
from metadatad.peers import Peer
from metadatad.records import Records
from metadatad.tombstones import Tombstone

PAGE: Final = 500
PARALLEL: Final = 4
GONE: Final = (Unavailable, DeadlineExceeded)
"""What ends a pass: the back end does not answer, and would not for the rest either."""

log = logging.getLogger(__name__)


class Remover(Protocol):
    async def run(self) -> bool:
        """One pass over the tombstones of the back end; True if none is left. Never raises a CarinaError."""


class ContentRemover:
    """Deletes blobs and aborts ingests."""

    def __init__(self, records: Records, backend: ContentStore, *, peer: Peer, claims: Claims) -> None:
        self._records = records
        self._backend = backend
        self._peer = peer
        self._claims = claims

    async def run(self) -> bool:
        return await _pass(self._records, ("content", "ingest"), "", self._remove_all)

    async def _remove_all(self, page: Sequence[Tombstone]) -> list[int]:
        """The ids of what is done."""
        done: list[int] = []
        waiting = list(reversed(page))

        async def work() -> None:
            while waiting:
                tombstone = waiting.pop()
                try:
                    if await self._remove(tombstone):
                        done.append(tombstone.id)
                except GONE as error:
                    waiting.clear()
                    log.warning("%s: removal stops: %s", self._peer.name, error)
                except CarinaError as error:
                    log.warning("%s: %s %s stays: %s", self._peer.name, tombstone.type, tombstone.key, error)

        async with asyncio.TaskGroup() as tasks:
            for number in range(PARALLEL):
                tasks.create_task(work(), name=f"remove content {number}")
        return done

    async def _remove(self, tombstone: Tombstone) -> bool:
        key = tombstone.key
        async with self._claims.delete((tombstone.type, key)) as free:
            if not free:
                return False
            needed = tombstones.content_needed if tombstone.type == "content" else tombstones.ingest_needed
            if await self._records.read(lambda connection: needed(connection, key)):
                return True
            faults.point("metadatad.removal.content.begun")
            try:
                async with self._peer.working():
                    await (self._delete(key) if tombstone.type == "content" else self._backend.abort(key))
            except NotFound:
                await self._bury_result(tombstone)
            faults.point("metadatad.removal.content.removed")
            if tombstone.until > now():  # whoever was told its name before may begin it only now
                await self._records.database.write(lambda connection: tombstones.look_later(connection, tombstone))
                return False
            return True

    async def _bury_result(self, tombstone: Tombstone) -> None:
        expected = tombstone.expected
        if expected is not None:
            await self._records.database.write(lambda connection: tombstones.bury_content(connection, expected, 0))

    async def _delete(self, key: str) -> None:
        await self._backend.delete(Digest(key))


class SnapshotRemover:
    """Removes snapshots, children first, and then has the snapshotter free what they took."""

    def __init__(self, name: str, records: Records, backend: Snapshotter, *, peer: Peer, claims: Claims) -> None:
        self._name = name
        self._records = records
        self._backend = backend
        self._peer = peer
        self._claims = claims
        self._dirty = True
        self._answers = True

    async def run(self) -> bool:
        self._answers = True
        clean = await _pass(self._records, ("snapshot",), self._name, self._remove_all)
        if not self._dirty or not self._answers:
            return clean
        try:
            async with self._peer.working():
                await self._backend.cleanup()
            self._dirty = False
        except Unimplemented:
            self._dirty = False
        except GONE:  # the registry has said so already
            return False
        except CarinaError as error:
            log.warning("%s: cleanup failed: %s", self._peer.name, error)
            return False
        return clean

    async def _remove_all(self, page: Sequence[Tombstone]) -> list[int]:
        """Remove in the order of burial; what has children still is tried again after them."""
        done: list[int] = []
        waiting, progress = list(page), True
        while waiting and progress:
            progress, again = False, []
            for tombstone in waiting:
                try:
                    removed = await self._remove(tombstone)
                except FailedPrecondition:
                    again.append(tombstone)
                    continue
                except GONE as error:
                    log.warning("%s: removal stops: %s", self._peer.name, error)
                    self._answers = False
                    return done
                except CarinaError as error:
                    log.warning("%s: snapshot %s stays: %s", self._peer.name, tombstone.key, error)
                    continue
                if removed:
                    done.append(tombstone.id)
                    progress = True
            waiting = again
        return done

    async def _remove(self, tombstone: Tombstone) -> bool:
        async with self._claims.delete(("snapshot", self._name, tombstone.key)) as free:
            if not free:
                return False
            if await self._records.read(
                lambda connection: tombstones.snapshot_needed(connection, self._name, tombstone.key)
            ):
                return True
            self._dirty = True
            faults.point("metadatad.removal.snapshot.begun")
            try:
                async with self._peer.working():
                    await self._backend.remove(tombstone.key)
            except NotFound:
                if tombstone.until > now():
                    await self._records.database.write(lambda connection: tombstones.look_later(connection, tombstone))
                    return False
            faults.point("metadatad.removal.snapshot.removed")
            return True


async def _pass(
    records: Records,
    types: Sequence[str],
    backend: str,
    remove: Callable[[Sequence[Tombstone]], Awaitable[list[int]]],
) -> bool:
    """Take tombstones page by page, as long as whole pages can be removed."""
    while True:
        page = await records.read(lambda connection: tombstones.waiting(connection, types, backend, PAGE))
        if not page:
            return True
        done = await remove(page)
        if done:
            await records.database.write(lambda connection: tombstones.drop(connection, done))  # noqa: B023
            faults.point("metadatad.removal.cleared")
        if len(done) < len(page):
            return not await records.read(lambda connection: tombstones.waiting(connection, types, backend, 1))
