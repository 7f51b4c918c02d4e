"""The rules of a snapshotter, whichever driver lays out its trees.

    <root>/metadata.db      the rows
    <root>/snapshots/7/     a snapshot's directory; only root can look into it

A snapshot is made in a temporary directory, renamed to its id, and then recorded; it is forgotten first and its
directory freed afterwards. So a row always has a directory, and a directory without a row is rubbish at any moment
that the process may have been killed.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from carina import faults
from carina import filters as filtering
from carina import labels as label_rules
from carina.aio.finish import finish
from carina.aio.locks import KeyedLock
from carina.aio.threads import in_thread
from carina.errors import DataLoss, FailedPrecondition, InvalidArgument
from carina.linux.errnos import translated
from carina.linux.filesystem import sync_directory, sync_filesystem
from carina.mount import Mount
from carina.snapshots import Info, Kind, Usage
from carina.snapshots.fields import fields as filter_fields
from snapshotd.drivers import Driver, tree
from snapshotd.records import Chain, Record, Records, open_records
from snapshotd.removal import Directories

_log = logging.getLogger(__name__)
UPPERDIR: Final = "containerd.io/snapshot/overlay.upperdir"
MAX_NAME: Final = 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    upperdir_label: bool = False
    """Show each snapshot's own tree in a label."""
    sync_remove: bool = False
    """Remove returns only when the disk space is free."""
    durable: bool = True
    """A committed snapshot survives a power loss."""


class LocalSnapshotter:
    """Implements `carina.snapshots.Snapshotter`. Made by `open_snapshotter`."""

    def __init__(
        self, *, records: Records, directories: Directories, driver: Driver, settings: Settings, lost: frozenset[int]
    ) -> None:
        self._records = records
        self._directories = directories
        self._driver = driver
        self._settings = settings
        self._lost = lost
        self._locks = KeyedLock()
        self._held: Counter[str] = Counter()

    @property
    def capabilities(self) -> tuple[str, ...]:
        """containerd's words for what the driver can."""
        return self._driver.capabilities

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return await self._create(Info(name=key, kind=Kind.ACTIVE, parent=parent, labels=labels or {}))

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return await self._create(Info(name=key, kind=Kind.VIEW, parent=parent, labels=labels or {}))

    async def mounts(self, key: str) -> list[Mount]:
        chain = await self._records.chain(key)
        if chain.kind is Kind.COMMITTED:
            raise FailedPrecondition(f"snapshot {key} is not active or a view: it is committed")
        return self._mounts(key, chain)

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        committed = Info(name=_checked(name), parent=parent, labels=labels or {})
        label_rules.validate(committed.labels)
        async with self._locks.hold(key), self._holding(parent):
            record, below = await self._records.check_commit(committed, key)
            self._check_there(key, (record.id,))
            parents = [] if below is None else [self._directories.place(below)]
            own = self._directories.place(record.id)
            if parents and not record.info.parent:
                await in_thread(self._rebase, own, parents[0], record.info)
            if self._settings.durable:
                await in_thread(_sync, tree(own))
            size, inodes = await in_thread(self._driver.usage, own, parents)
            faults.point("snapshotd.commit.synced")
            await finish(self._records.commit(committed, key, Usage(size=size, inodes=inodes)))
            faults.point("snapshotd.commit.recorded")

    async def remove(self, key: str) -> None:
        async with self._locks.hold(key):
            await finish(self._forget(key))
        if self._settings.sync_remove:
            await self._directories.sweep()

    async def stat(self, key: str) -> Info:
        return self._shown(await self._records.get(key))

    async def update(self, info: Info, fields: Sequence[str] = ()) -> Info:
        label_rules.validate(info.labels)
        labels = {
            name: value for name, value in info.labels.items() if name != UPPERDIR or not self._settings.upperdir_label
        }
        return self._shown(await self._records.update(replace(info, labels=labels), fields))

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        matches = filtering.matcher(filters, filter_fields)
        last = ""
        while page := await self._records.page(last):
            for record in page:
                info = self._shown(record)
                if matches(info):
                    yield info
            last = page[-1].info.name

    async def usage(self, key: str) -> Usage:
        record = await self._records.get(key)
        if record.info.kind is not Kind.ACTIVE:
            return record.usage
        self._check_there(key, (record.id,))
        parents = [self._directories.place(number) for number in (await self._records.chain(key)).parents]
        size, inodes = await in_thread(self._driver.usage, self._directories.place(record.id), parents)
        return Usage(size=size, inodes=inodes)

    async def cleanup(self) -> None:
        await self._directories.sweep()

    async def run(self) -> None:
        """Free what was removed, in the background, until cancelled. Without it that is left to `cleanup`."""
        await self._directories.run()

    async def close(self) -> None:
        """The database is closed by who opened it."""

    async def _create(self, info: Info) -> list[Mount]:
        _checked(info.name)
        label_rules.validate(info.labels)
        async with self._locks.hold(info.name):
            async with self._holding(info.parent):
                parents = await self._records.check_insert(info)
                self._check_there(info.name, parents)
                return await finish(self._make(info, parents))

    async def _make(self, info: Info, parents: tuple[int, ...]) -> list[Mount]:
        number = self._records.next_id()
        place = self._directories.place(number)
        with self._directories.making(number) as temporary:
            try:
                await in_thread(self._fill, temporary, place, info, parents)
                chain = await self._records.insert(number, info)
                faults.point("snapshotd.prepare.recorded")
            except BaseException:
                await self._directories.discard(temporary)
                await self._directories.discard(place)
                raise
        return self._mounts(info.name, chain)

    def _fill(self, temporary: Path, place: Path, info: Info, parents: tuple[int, ...]) -> None:
        try:
            temporary.mkdir(mode=0o700)
            below = [self._directories.place(parent) for parent in parents]
            self._driver.create(temporary, kind=info.kind, parents=below, labels=info.labels)
            faults.point("snapshotd.prepare.filled")
            temporary.rename(place)
            faults.point("snapshotd.prepare.placed")
            if self._settings.durable:
                _sync_new(place, copied=self._driver.copies and bool(below))
        except OSError as error:
            raise translated(error, f"making the directory of snapshot {info.name}") from error

    def _rebase(self, own: Path, parent: Path, info: Info) -> None:
        try:
            self._driver.rebase(own, parent, info.labels)
        except OSError as error:
            raise translated(error, f"putting snapshot {info.name} on its parent") from error

    @contextlib.asynccontextmanager
    async def _holding(self, parent: str) -> AsyncIterator[None]:
        """While a tree is copied from its parent, or put on it, the parent can't be removed."""
        self._held[parent] += 1
        try:
            yield
        finally:
            self._held[parent] -= 1
            self._held += Counter()

    async def _forget(self, key: str) -> None:
        number = await self._records.delete(key, held=frozenset(self._held))
        faults.point("snapshotd.remove.forgotten")
        await self._directories.discard(self._directories.place(number))
        faults.point("snapshotd.remove.discarded")

    def _mounts(self, key: str, chain: Chain) -> list[Mount]:
        self._check_there(key, (chain.id, *chain.parents))
        return self._driver.mounts(chain, self._directories.where)

    def _check_there(self, key: str, numbers: Iterable[int]) -> None:
        if lost := self._lost.intersection(numbers):
            directory = self._directories.place(min(lost))
            raise DataLoss(f"snapshot {key}: directory {directory} is gone")

    def _shown(self, record: Record) -> Info:
        if not self._settings.upperdir_label:
            return record.info
        upper = str(tree(self._directories.place(record.id)))
        return replace(record.info, labels={**record.info.labels, UPPERDIR: upper})


def _checked(name: str) -> str:
    if not name or len(name.encode()) > MAX_NAME:
        raise InvalidArgument(f"snapshot key {name[:80]!r} is not valid: expected 1 to {MAX_NAME} bytes")
    return name


def _sync(path: Path) -> None:
    try:
        sync_filesystem(path)
    except OSError as error:
        raise translated(error, f"writing {path} to the disk") from error


def _sync_new(place: Path, *, copied: bool) -> None:
    """After the rename, and before the row: a journal is committed once for the names in both directories."""
    if copied:
        sync_filesystem(place)
        return
    sync_directory(place)
    sync_directory(place.parent)


def _make_directories(root: Path) -> Path:
    """The folders, and no access for anybody else, also where an earlier version or umask was lax."""
    folder = root / "snapshots"
    try:
        for path in (root, folder):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
    except OSError as error:
        raise translated(error, f"making directory {folder}") from error
    return folder


@contextlib.asynccontextmanager
async def open_snapshotter(root: Path, driver: Driver, settings: Settings) -> AsyncIterator[LocalSnapshotter]:
    """Open a snapshotter on `root` for the block, and find what a crash left.

    Raises:
        FailedPrecondition: another process has it open, or the file system is not fit for the driver.
        DataLoss: the database is damaged.
    """
    folder = await in_thread(_make_directories, root)
    await in_thread(driver.check, folder)
    async with open_records(root / "metadata.db") as records:
        directories = Directories(folder, records, driver.free)
        present = await directories.present()
        records.skip(max(present, default=0))
        lost = frozenset(await records.ids() - present)
        for number in sorted(lost):
            _log.error("snapshot directory %s is gone: what stands on it can't be mounted", directories.place(number))
        directories.wake()
        yield LocalSnapshotter(records=records, directories=directories, driver=driver, settings=settings, lost=lost)
