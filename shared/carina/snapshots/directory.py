"""A base for snapshotters of one's own: the rules and records are here, and `fill` is all that is left to write.

    <directory>/snapshots.json    what there is
    <directory>/trees/…           a tree for each snapshot

Meant for demonstrations, tests and prototypes: every change writes the whole file.
"""

import asyncio
import json
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from carina import filters as filtering
from carina import labels as label_rules
from carina.aio.threads import in_thread
from carina.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from carina.linux.usage import measure
from carina.mount import Mount
from carina.snapshots import Info, Kind, Usage
from carina.snapshots.fields import fields as filter_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    info: Info
    tree: Path


class DirectorySnapshotter:
    """A snapshotter with a directory for each snapshot. Make it on the directory that is to hold them all."""

    def __init__(self, directory: Path) -> None:
        directory = directory.absolute()  # mounts are performed elsewhere
        self._file = directory / "snapshots.json"
        self._trees = directory / "trees"
        self._trees.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._rows = _read(self._file, self._trees)
        self._saving = asyncio.Lock()
        self._making: dict[str, str] = {}
        """Keys that are being made, with their parents."""

    async def fill(self, tree: Path, parent: Path | None) -> None:
        """Make the content of a new snapshot in the empty directory `tree`, from its parent's tree."""
        raise NotImplementedError

    def mounts_of(self, tree: Path, *, writable: bool) -> list[Mount]:
        """How a tree is mounted."""
        return [Mount(type="bind", source=str(tree), options=("rw" if writable else "ro", "rbind"))]

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return await self._make(Info(name=key, kind=Kind.ACTIVE, parent=parent, labels=labels or {}))

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return await self._make(Info(name=key, kind=Kind.VIEW, parent=parent, labels=labels or {}))

    async def mounts(self, key: str) -> list[Mount]:
        row = self._row(key)
        if row.info.kind is Kind.COMMITTED:
            raise FailedPrecondition(f"snapshot {key} is not active or a view: it is committed")
        return self.mounts_of(row.tree, writable=row.info.kind is Kind.ACTIVE)

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        row = self._row(key)
        self._check_free(name)
        if row.info.kind is not Kind.ACTIVE:
            raise FailedPrecondition(f"snapshot {key} is not active")
        if parent not in ("", row.info.parent):
            raise InvalidArgument(f"snapshot {key}: its parent cannot be changed to {parent} at commit")
        committed = replace(_stamped(row.info), name=name, kind=Kind.COMMITTED, labels=_kept(labels or {}))
        del self._rows[key]
        self._rows[name] = replace(row, info=committed)
        await self._save()

    async def remove(self, key: str) -> None:
        row = self._row(key)
        if key in self._making.values() or any(other.info.parent == key for other in self._rows.values()):
            raise FailedPrecondition(f"snapshot {key}: cannot remove it, others stand on it")
        del self._rows[key]
        await self._save()
        await in_thread(shutil.rmtree, row.tree)

    async def stat(self, key: str) -> Info:
        return self._row(key).info

    async def update(self, info: Info, fields: Sequence[str] = ()) -> Info:
        row = self._row(info.name)
        for field in fields:
            if field != "labels" and not field.startswith("labels."):
                raise InvalidArgument(f"snapshot {info.name}: cannot update field {field!r}, only labels")
        labels = label_rules.changed(row.info.labels, info.labels, list(fields) or ["labels"])
        changed = replace(row.info, labels=_kept(labels), updated_at=datetime.now(UTC))
        self._rows[info.name] = replace(row, info=changed)
        await self._save()
        return changed

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        matches = filtering.matcher(filters, filter_fields)
        for row in sorted(self._rows.values(), key=lambda row: row.info.name):
            if matches(row.info):
                yield row.info

    async def usage(self, key: str) -> Usage:
        size, inodes = await in_thread(measure, self._row(key).tree)
        return Usage(size=size, inodes=inodes)

    async def cleanup(self) -> None:
        raise Unimplemented("a removed snapshot leaves nothing behind")

    async def close(self) -> None:
        """Nothing is held open."""

    async def _make(self, info: Info) -> list[Mount]:
        parent = self._row(info.parent, noun="parent snapshot") if info.parent else None
        if parent and parent.info.kind is not Kind.COMMITTED:
            raise InvalidArgument(f"parent snapshot {info.parent} is not committed")
        self._check_free(info.name)
        label_rules.validate(info.labels)
        tree = self._trees / uuid.uuid4().hex
        self._making[info.name] = info.parent
        try:
            await in_thread(_make_directory, tree)
            await self.fill(tree, parent.tree if parent else None)
            row = _Row(info=_stamped(replace(info, labels=_kept(info.labels))), tree=tree)
            self._rows[info.name] = row
            await self._save()
        except BaseException:
            await in_thread(shutil.rmtree, tree, ignore_errors=True)
            raise
        finally:
            del self._making[info.name]
        return self.mounts_of(tree, writable=info.kind is Kind.ACTIVE)

    def _row(self, name: str, *, noun: str = "snapshot") -> _Row:
        if name not in self._rows:
            raise NotFound(f"{noun} {name}: not found")
        return self._rows[name]

    def _check_free(self, name: str) -> None:
        if not name:
            raise InvalidArgument("a snapshot's key must not be empty")
        if name in self._rows or name in self._making:
            raise AlreadyExists(f"snapshot {name}: already exists")

    async def _save(self) -> None:
        async with self._saving:
            await in_thread(_write, self._file, [_to_json(row) for row in self._rows.values()])


def _stamped(info: Info) -> Info:
    now = datetime.now(UTC)
    return replace(info, created_at=now, updated_at=now)


def _kept(labels: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in labels.items() if value}


def _make_directory(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)


def _to_json(row: _Row) -> dict[str, object]:
    info = row.info
    times = {"created_at": str(info.created_at), "updated_at": str(info.updated_at)}
    names = {"name": info.name, "kind": info.kind.name, "parent": info.parent, "tree": row.tree.name}
    return {**names, **times, "labels": dict(info.labels)}


def _read(file: Path, trees: Path) -> dict[str, _Row]:
    rows = {}
    for row in json.loads(file.read_text()) if file.exists() else ():
        created, updated = (datetime.fromisoformat(row[key]) for key in ("created_at", "updated_at"))
        info = Info(
            name=row["name"],
            kind=Kind[row["kind"]],
            parent=row["parent"],
            created_at=created,
            updated_at=updated,
            labels=row["labels"],
        )
        rows[info.name] = _Row(info=info, tree=trees / row["tree"])
    return rows


def _write(file: Path, rows: Sequence[object]) -> None:
    temporary = file.with_suffix(".new")
    with temporary.open("w") as stream:
        json.dump(rows, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(file)
