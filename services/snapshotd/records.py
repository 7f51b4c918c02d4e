"""The rows of one snapshotter: which snapshots exist, of what kind, on which parent.

Every change checks and writes in one transaction, so that what is recorded is consistent whatever runs at once.
Functions that take a `sqlite3.Connection` run inside a transaction.
"""

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from carina import labels as label_rules
from carina.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from carina.snapshots import Info, Kind, Usage
from carina.sqlite import Database, now, open_database, to_time

PAGE: Final = 200
_REMEMBERED: Final = 1024
"""Chains kept in memory."""
_COLUMNS: Final = """
    s.id, s.name, s.kind, coalesce(p.name, ''), s.labels, s.created_at, s.updated_at, s.size, s.inodes
    FROM snapshots AS s LEFT JOIN snapshots AS p ON p.id = s.parent_id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A row."""

    id: int
    info: Info
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """What a driver needs to make mounts: the snapshot's own directory and those below it, the nearest first."""

    id: int
    kind: Kind
    parents: tuple[int, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


class Records:
    """The rows. Made by `open_records`."""

    def __init__(self, database: Database, highest: int) -> None:
        self._database = database
        self._next = highest + 1
        self._chains: dict[str, Chain] = {}
        """Of snapshots that are not committed: what `Mounts` asks for time and again."""
        self._changes = 0
        """Rows that were changed or removed. Counted in the database's thread, before the chain is forgotten."""

    def next_id(self) -> int:
        """An id that no snapshot has had."""
        self._next += 1
        return self._next - 1

    def skip(self, used: int) -> None:
        """Give no id up to `used`."""
        self._next = max(self._next, used + 1)

    async def get(self, name: str) -> Record:
        """Raises NotFound."""
        return await self._database.read(lambda connection: _get(connection, name))

    async def chain(self, name: str) -> Chain:
        """The snapshot with all its parents. Raises NotFound."""
        known = self._chains.get(name)
        if known is not None:
            return known
        before = self._changes
        found = await self._database.read(lambda connection: _chain(connection, _get(connection, name)))
        if found.kind is not Kind.COMMITTED and self._changes == before:
            if len(self._chains) >= _REMEMBERED:
                self._chains.clear()
            self._chains[name] = found
            if self._changes != before:  # a change came between the two lines
                self._chains.pop(name, None)
        return found

    def _changed(self, name: str) -> Callable[[object], None]:
        """For the database's thread, which calls it when a change of the snapshot is committed."""

        def forget(_: object) -> None:
            self._changes += 1
            self._chains.pop(name, None)

        return forget

    async def check_insert(self, info: Info) -> tuple[int, ...]:
        """What `insert` would refuse, before the work for it begins; the ids of the parents, the nearest first."""

        def read(connection: sqlite3.Connection) -> tuple[int, ...]:
            parents = _parents(connection, info.parent)
            if _find(connection, info.name) is not None:
                raise AlreadyExists(f"snapshot {info.name}: already exists")
            return parents

        return await self._database.read(read)

    async def ids(self) -> set[int]:
        return await self._database.read(
            lambda connection: {number for (number,) in connection.execute("SELECT id FROM snapshots")}
        )

    async def page(self, after: str) -> list[Record]:
        """The next rows in the order of their names."""

        def read(connection: sqlite3.Connection) -> list[Record]:
            query = f"SELECT {_COLUMNS} WHERE s.name > ? ORDER BY s.name LIMIT ?"
            return [_record(row) for row in connection.execute(query, (after, PAGE))]

        return await self._database.read(read)

    async def insert(self, number: int, info: Info) -> Chain:
        """Record an active snapshot or a view.

        Raises:
            AlreadyExists: the key is in use.
            NotFound: no such parent.
            InvalidArgument: the parent is not committed.
        """

        def write(connection: sqlite3.Connection) -> Chain:
            parents = _parents(connection, info.parent)
            moment = now()
            try:
                connection.execute(
                    "INSERT INTO snapshots (id, name, kind, parent_id, labels, created_at, updated_at)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        number,
                        info.name,
                        info.kind.value,
                        parents[0] if parents else None,
                        _text(info.labels),
                        moment,
                        moment,
                    ),
                )
            except sqlite3.IntegrityError as error:
                raise AlreadyExists(f"snapshot {info.name}: already exists") from error
            return Chain(id=number, kind=info.kind, parents=parents, labels=info.labels)

        return await self._database.write(write)

    async def commit(self, committed: Info, key: str, usage: Usage) -> None:
        """Turn the active snapshot `key` into `committed` (its name, labels, and its parent if one is named).

        Raises:
            NotFound: no such key, or no such parent.
            AlreadyExists: the name is in use.
            FailedPrecondition: the snapshot is not active, or the new parent is not committed.
            InvalidArgument: the snapshot was prepared on another parent.
        """

        def write(connection: sqlite3.Connection) -> None:
            record = _get(connection, key)
            check_commit(connection, committed, record)
            moment = now()
            parent = committed.parent or record.info.parent
            connection.execute(
                "UPDATE snapshots SET name = ?, kind = ?, labels = ?, created_at = ?, updated_at = ?, size = ?,"
                " inodes = ?, parent_id = (SELECT id FROM snapshots WHERE name = ?) WHERE id = ?",
                (
                    *(committed.name, Kind.COMMITTED.value, _text(committed.labels), moment, moment),
                    *(usage.size, usage.inodes, parent, record.id),
                ),
            )

        await self._database.write(write, committed=self._changed(key))

    async def check_commit(self, committed: Info, key: str) -> tuple[Record, int | None]:
        """What `commit` would refuse, before the work for it begins; with the id of the parent that it will have."""

        def read(connection: sqlite3.Connection) -> tuple[Record, int | None]:
            record = _get(connection, key)
            check_commit(connection, committed, record)
            parent = committed.parent or record.info.parent
            return record, _get(connection, parent).id if parent else None

        return await self._database.read(read)

    async def delete(self, name: str, *, held: frozenset[str] = frozenset()) -> int:
        """Forget a snapshot; the id of its directory. `held`: parents of snapshots that are being made.

        Raises:
            NotFound: no such snapshot.
            FailedPrecondition: others stand on it.
        """

        def write(connection: sqlite3.Connection) -> int:
            record = _get(connection, name)
            child = connection.execute(
                "SELECT name FROM snapshots WHERE parent_id = ? LIMIT 1", (record.id,)
            ).fetchone()
            if child is not None or name in held:
                by = f" {child[0]}" if child else ""
                raise FailedPrecondition(
                    f"snapshot {name}: cannot remove it, snapshot{by or 's'} stand{'s' * bool(by)} on it"
                )
            connection.execute("DELETE FROM snapshots WHERE id = ?", (record.id,))
            return record.id

        return await self._database.write(write, committed=self._changed(name))

    async def update(self, info: Info, fields: Sequence[str]) -> Record:
        """Change labels.

        Raises:
            NotFound: no such snapshot.
            InvalidArgument: a field that can't be changed.
        """
        for path in fields:
            if path != "labels" and not path.startswith("labels."):
                raise InvalidArgument(f"snapshot {info.name}: cannot update field {path!r}, only labels")

        def write(connection: sqlite3.Connection) -> Record:
            record = _get(connection, info.name)
            labels = label_rules.changed(record.info.labels, info.labels, list(fields) or ["labels"])
            connection.execute(
                "UPDATE snapshots SET labels = ?, updated_at = ? WHERE id = ?", (_text(labels), now(), record.id)
            )
            return _get(connection, info.name)

        return await self._database.write(write, committed=self._changed(info.name))


def check_commit(connection: sqlite3.Connection, committed: Info, record: Record) -> None:
    key, parent = record.info.name, committed.parent
    if committed.name != key and _find(connection, committed.name) is not None:
        raise AlreadyExists(f"committed snapshot {committed.name}: already exists")
    if record.info.kind is not Kind.ACTIVE:
        raise FailedPrecondition(f"snapshot {key} is not active, it is {record.info.kind.name.lower()}")
    if committed.name == key:
        raise AlreadyExists(f"committed snapshot {committed.name}: already exists")
    if not parent or parent == record.info.parent:
        return
    if record.info.parent:
        raise InvalidArgument(
            f"snapshot {key}: its parent {record.info.parent} cannot be changed to {parent} at commit"
        )
    if _get(connection, parent).info.kind is not Kind.COMMITTED:
        raise FailedPrecondition(f"snapshot {key}: its parent {parent} is not committed")


def _text(labels: Mapping[str, str]) -> str:
    """An empty value removes a label, as everywhere in containerd."""
    return json.dumps({key: value for key, value in sorted(labels.items()) if value}, ensure_ascii=False)


def _find(connection: sqlite3.Connection, name: str) -> Record | None:
    row = connection.execute(f"SELECT {_COLUMNS} WHERE s.name = ?", (name,)).fetchone()
    return None if row is None else _record(row)


def _get(connection: sqlite3.Connection, name: str) -> Record:
    record = _find(connection, name)
    if record is None:
        raise NotFound(f"snapshot {name}: not found")
    return record


def _chain(connection: sqlite3.Connection, record: Record) -> Chain:
    parents = _parents(connection, record.info.parent)
    return Chain(id=record.id, kind=record.info.kind, parents=parents, labels=record.info.labels)


def _parents(connection: sqlite3.Connection, parent: str) -> tuple[int, ...]:
    if not parent:
        return ()
    record = _find(connection, parent)
    if record is None:
        raise NotFound(f"parent snapshot {parent}: not found")
    if record.info.kind is not Kind.COMMITTED:
        raise InvalidArgument(f"parent snapshot {parent} is not committed")
    rows = connection.execute(
        "WITH RECURSIVE chain (id, parent_id, depth) AS ("
        " SELECT id, parent_id, 0 FROM snapshots WHERE id = ?"
        " UNION ALL SELECT s.id, s.parent_id, depth + 1 FROM snapshots AS s JOIN chain ON s.id = chain.parent_id"
        ") SELECT id FROM chain ORDER BY depth",
        (record.id,),
    )
    return tuple(number for (number,) in rows)


def _record(row: tuple[int, str, int, str, str, int, int, int, int]) -> Record:
    number, name, kind, parent, labels, created, updated, size, inodes = row
    info = Info(
        name=name,
        kind=Kind(kind),
        parent=parent,
        created_at=to_time(created),
        updated_at=to_time(updated),
        labels=json.loads(labels),
    )
    return Record(id=number, info=info, usage=Usage(size=size, inodes=inodes))


@contextlib.asynccontextmanager
async def open_records(path: Path) -> AsyncIterator[Records]:
    """Open the database at `path` for the block. Raises as `carina.sqlite.open_database` does."""
    async with open_database(path, "snapshotd") as database:
        row = await database.read(
            lambda connection: connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'snapshots'").fetchone()
        )
        yield Records(database, row[0] if row else 0)
