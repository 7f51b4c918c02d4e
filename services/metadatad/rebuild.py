"""A new database from what the stores hold, while no metadatad runs.

back      every blob, with the references that manifests and indexes state; every snapshot, in the namespace that its
          key in the back end names; names of images that an index or a given list tells;
          and whatever the old database still tells (`salvage`), in its namespaces and with its labels
not back  of what can't be salvaged: namespaces of content, labels, names of images, containers, sandboxes, leases;
          ingests and events in any case

A lease in each namespace keeps all of it until somebody has looked and removes the lease.
"""

import os
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from carina import context
from carina.check import Finding, Options, Unchecked
from carina.digest import Digest
from carina.errors import CarinaError, InvalidArgument, NotFound
from carina.sqlite import Database, copies, now, open_database, ownership
from metadatad import found, namespaces, salvage
from metadatad.backends import open_registry
from metadatad.checkrecords import RecordCheck
from metadatad.checkrun import Run
from metadatad.columns import pack, validate_name
from metadatad.config import Config
from metadatad.records import Records
from metadatad.restore import claimed, skip_numbers
from metadatad.sides import ContentSide, SnapshotSide

BATCH: Final = 500
MAX_LIST: Final = 64 * 1024 * 1024
"""Bytes of a list of images."""
Names = list[tuple[str, Digest]]
_Snapshot = tuple[str, int, str, str, int, str, str]
"""Namespace, number, key, key in the back end, kind, parent's key, labels."""


@dataclass(slots=True, kw_only=True)
class Rebuilt:
    """What came back."""

    salvaged: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    left: list[tuple[str, str]] = field(default_factory=list)
    """What could not be looked at or understood, and why."""
    leases: list[tuple[str, str]] = field(default_factory=list)
    """Namespaces, with the lease that keeps everything in each."""
    aside: Path | None = None


async def rebuild(config: Config, *, namespace: str, images: Path | None = None, salvaging: bool = True) -> Rebuilt:
    """Put a new database in the place of the old one, which is kept. `namespace` is for content of unknown namespace.

    Raises:
        FailedPrecondition: the database is in use.
        Unavailable: the content store does not answer.
        NotFound, InvalidArgument: there is no list of images, or it is none.
    """
    context.validate_identifier(namespace, "namespace")
    listed = read_list(images) if images else []
    path = config.database
    if not path.parent.is_dir():
        raise NotFound(f"there is no directory {path.parent}: nothing was ever recorded there")
    new = path.with_name(f"{path.name}.new-{os.urandom(4).hex()}")
    done = Rebuilt()
    with claimed(path) as lock:
        try:
            async with open_database(new, "metadatad", readers=1) as database:
                with context.within(namespace=namespace):
                    await _Work(config, database, done, namespace).run(path if salvaging else None, listed)
            done.aside = copies.set_aside(path)
            copies.put(new, path)
            ownership.mark(path, lock)
        finally:
            copies.remove(new)
            Path(f"{new}.lock").unlink(missing_ok=True)
    return done


def read_list(path: Path) -> Names:
    """Names of images and their digests, from lines in which both stand, as lists of images have them."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_LIST + 1).decode(errors="replace")
    except OSError as error:
        raise NotFound(f"the list of images {path} can't be read: {(error.strerror or str(error)).lower()}") from error
    names = []
    for words in map(str.split, text.splitlines()):
        digests = [word for word in words[1:] if word.startswith("sha") and ":" in word]
        if digests:
            names.append((words[0], Digest(digests[0])))
    if not names:
        raise InvalidArgument(f"{path} is no list of images: no line has a name and a digest")
    return names


class _Work:
    def __init__(self, config: Config, database: Database, done: Rebuilt, namespace: str) -> None:
        self._config = config
        self._database = database
        self._records = Records(database, deliver=lambda _: None)
        self._done = done
        self._namespace = namespace
        self._highest = 0

    async def run(self, old: Path | None, listed: Names) -> None:
        if old is not None:
            for table in salvage.TABLES:
                await self._salvage(old, table)
        await self._database.write(_prepare)
        async with open_registry(self._records, self._config.constellation, self._config.backends) as registry:
            for name, side in registry.snapshot_sides().items():
                try:
                    await self._snapshots(side)
                except CarinaError as error:
                    self._done.left.append((f"snapshotter {name}", str(error)))
            content = registry.content_side()
            await self._content(content)
            await self._documents(content)
            await self._images(content, listed)
        await self._database.write(lambda connection: skip_numbers(connection, self._highest))
        self._done.leases = await self._database.write(_hold)
        run = Run(records=self._records, options=Options(repair=True, hash=False), report=_unheard, started=now())
        await RecordCheck(run, self._database.path).check()

    async def _salvage(self, old: Path, table: str) -> None:
        """In the database's thread: the old one is read with plain calls, which block."""

        def insert(connection: sqlite3.Connection) -> int:
            columns = {name for (name,) in connection.execute(f"SELECT name FROM pragma_table_info('{table}')")}  # noqa: S608
            count = 0
            for row in salvage.rows(old, table):
                known = {name: value for name, value in row.items() if name in columns}
                count += _put(connection, table, known)
            return count

        self._done.salvaged[table.replace("_", " ")] += await self._database.write(insert)

    async def _snapshots(self, side: SnapshotSide) -> None:
        batch: list[_Snapshot] = []
        async with side.peer.listing() as came:
            async for info in side.snapshotter.walk():
                came()
                place = _parse(info.name)
                if place is None:
                    self._done.left.append((f"snapshot {info.name} of {side.name}", "its key names no namespace"))
                    continue
                parent = _parse(info.parent)
                self._highest = max(self._highest, place[1])
                row = (*place, info.name, info.kind.value, parent[2] if parent else "", pack(info.labels))
                batch.append(row)
                if len(batch) == BATCH:
                    await self._record_snapshots(side.name, batch)
                    batch = []
        await self._record_snapshots(side.name, batch)

    async def _record_snapshots(self, name: str, batch: list[_Snapshot]) -> None:
        rows = sorted(batch, key=lambda row: -row[1])  # of a key that was used again, the last one counts

        def insert(connection: sqlite3.Connection) -> int:
            count = 0
            for namespace, _, key, backend_key, kind, parent, labels in rows:
                known = connection.execute(
                    "SELECT 1 FROM snapshots WHERE snapshotter = ? AND backend_key = ?", (name, backend_key)
                ).fetchone()
                if known is None:
                    values = {
                        "namespace": namespace,
                        "snapshotter": name,
                        "key": key,
                        "backend_key": backend_key,
                        "kind": kind,
                        "parent": parent,
                        "labels": labels,
                        "created_at": now(),
                        "updated_at": now(),
                    }
                    count += _put(connection, "snapshots", values)
            return count

        self._done.found["snapshots"] += await self._database.write(insert)

    async def _content(self, side: ContentSide) -> None:
        batch: list[tuple[str, int, str]] = []
        async with side.peer.listing() as came:
            async for info in side.store.walk():
                came()
                batch.append((info.digest, info.size, pack(info.labels)))
                if len(batch) == BATCH:
                    await self._record_content(batch)
                    batch = []
        await self._record_content(batch)

    async def _record_content(self, batch: list[tuple[str, int, str]]) -> None:
        rows = list(batch)

        def insert(connection: sqlite3.Connection) -> int:
            count = 0
            for digest, size, labels in rows:
                if connection.execute("SELECT 1 FROM blobs WHERE digest = ?", (digest,)).fetchone() is None:
                    moment = now()
                    values = {"namespace": self._namespace, "digest": digest, "size": size, "labels": labels}
                    count += _put(connection, "blobs", values | {"created_at": moment, "updated_at": moment})
                    connection.execute("INSERT INTO fresh VALUES (?, ?)", (digest, size))
            return count

        self._done.found["blobs"] += await self._database.write(insert)

    async def _documents(self, side: ContentSide) -> None:
        """Read what may be manifests, indexes and configurations among the blobs that nothing else tells of."""
        after = ""
        while True:
            start = after
            page = await self._database.write(
                lambda c: c.execute(
                    "SELECT digest, size FROM fresh WHERE digest > ? AND size <= ? ORDER BY digest LIMIT ?",
                    (start, found.MAX_SIZE, BATCH),  # noqa: B023
                ).fetchall()
            )
            for digest, size in page:
                document = await self._read(side, Digest(digest), size)
                if document is not None:
                    await self._database.write(lambda c: self._describe(c, digest, document))  # noqa: B023
            if len(page) < BATCH:
                return
            after = page[-1][0]

    async def _read(self, side: ContentSide, digest: Digest, size: int) -> found.Document | None:
        try:
            async with side.peer.working(), await side.store.reader(digest) as reader:
                data = await reader.read(0, min(size, 4096))
                if not data.lstrip().startswith(b"{"):
                    return None
                while len(data) < size and (more := await reader.read(len(data), size - len(data))):
                    data += more
        except NotFound:
            return None
        return found.understood(data) if Digest.of(data, digest.algorithm) == digest else None

    def _describe(self, connection: sqlite3.Connection, digest: str, document: found.Document) -> None:
        labels = dict(document.labels)
        for (snapshotter,) in connection.execute(
            "SELECT snapshotter FROM snapshots WHERE namespace = ? AND key = ?", (self._namespace, document.chain)
        ):
            labels[f"containerd.io/gc.ref.snapshot.{snapshotter}"] = document.chain
        connection.execute(
            "UPDATE blobs SET labels = json_patch(labels, ?) WHERE namespace = ? AND digest = ?",
            (pack(labels), self._namespace, digest),
        )
        for name, target in document.images:
            self._done.found["images"] += _image(
                connection, self._namespace, name, target.digest, target.media_type, target.size
            )

    async def _images(self, side: ContentSide, listed: Names) -> None:
        for name, digest in listed:
            size = await self._database.read(
                lambda c: c.execute("SELECT size, namespace FROM blobs WHERE digest = ?", (digest,)).fetchone()  # noqa: B023
            )
            document = await self._read(side, digest, size[0]) if size and size[0] <= found.MAX_SIZE else None
            if document is None or not document.media_type:
                self._done.left.append((f"image {name}", f"{digest} is not there, or no image"))
                continue
            self._done.found["images"] += await self._database.write(
                lambda c: _image(c, size[1], name, digest, document.media_type, size[0])  # noqa: B023
            )


def _parse(backend_key: str) -> tuple[str, int, str] | None:
    """Namespace, number and key of `<namespace>/<number>/<key>`."""
    namespace, _, rest = backend_key.partition("/")
    number, slash, key = rest.partition("/")
    try:
        context.validate_identifier(namespace, "namespace")
        validate_name(key, "snapshot key")
    except InvalidArgument:
        return None
    if not slash or not number.isascii() or not number.isdigit() or len(number) > 18:
        return None
    return namespace, int(number), key


def _put(connection: sqlite3.Connection, table: str, values: dict[str, object]) -> int:
    """1 where the row is new; a row that can't be is passed over."""
    columns = ", ".join(values)
    marks = ", ".join("?" * len(values))
    try:
        if isinstance(values.get("namespace"), str):
            namespaces.ensure(connection, str(values["namespace"]))
        cursor = connection.execute(
            f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})",  # noqa: S608 - names from our schema
            tuple(values.values()),
        )
    except sqlite3.IntegrityError:
        return 0
    return cursor.rowcount


def _image(connection: sqlite3.Connection, namespace: str, name: str, digest: str, media_type: str, size: int) -> int:
    try:
        validate_name(name, "image name")
    except InvalidArgument:
        return 0
    values = {"namespace": namespace, "name": name, "media_type": media_type, "digest": digest, "size": size}
    return _put(connection, "images", values | {"created_at": now(), "updated_at": now()})


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TEMP TABLE fresh (digest TEXT PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID")


def _hold(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """A lease on all content and all snapshots of each namespace."""
    lease = f"rebuilt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    held = [name for (name,) in connection.execute("SELECT namespace FROM blobs UNION SELECT namespace FROM snapshots")]
    for name in held:
        connection.execute(
            "INSERT OR IGNORE INTO leases (namespace, id, created_at) VALUES (?, ?, ?)", (name, lease, now())
        )
        connection.execute(
            "INSERT OR IGNORE INTO lease_resources SELECT namespace, ?2, 'content', digest FROM blobs "
            "WHERE namespace = ?1 UNION ALL SELECT namespace, ?2, 'snapshots/' || snapshotter, key FROM snapshots "
            "WHERE namespace = ?1",
            (name, lease),
        )
    return [(name, lease) for name in held]


async def _unheard(result: Finding | Unchecked) -> None:
    """What is stated anew is no news here."""
