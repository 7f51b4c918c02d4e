"""What the parts of a check have in common: where they report, what they count, and tombstones."""

import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from carina.check import Finding, Options, Unchecked
from carina.content import Info as BlobInfo
from carina.errors import CarinaError, NotFound
from carina.snapshots import Info as SnapshotInfo
from carina.sqlite import now
from metadatad import tombstones
from metadatad.names import Names
from metadatad.peers import Peer
from metadatad.records import Records
from metadatad.removal import Remover

T = TypeVar("T", BlobInfo, SnapshotInfo)

PAGE: Final = 500
SUSPECTS: Final = 10_000
"""Objects of one back end that are looked at again at the most."""
TOMBSTONE_SECONDS: Final = 900.0
"""How long a removal may be due before it is told."""
INGEST_SECONDS: Final = 60.0
"""How long an ingest may be recorded before its store has it."""
Report = Callable[[Finding | Unchecked], Awaitable[None]]


@dataclass(slots=True)
class Suspects:
    """Names to look at again, a bounded number of them."""

    names: list[str] = field(default_factory=list)
    more: bool = False

    def add(self, name: str) -> None:
        if len(self.names) < SUSPECTS:
            self.names.append(name)
        else:
            self.more = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One check."""

    records: Records
    options: Options
    report: Report
    started: int
    """When this process began: calls that are older are under way no more."""
    count: Counter[str] = field(default_factory=Counter)

    async def too_many(self, name: str, suspects: Suspects) -> None:
        if suspects.more:
            reason = f"more than {SUSPECTS} objects look wrong: the others were not looked at"
            await self.report(Unchecked(name=name, reason=reason))


async def compare(
    run: Run, peer: Peer, objects: AsyncIterator[T], strange: Callable[[sqlite3.Connection, list[T]], list[str]]
) -> tuple[Names, Suspects]:
    """Go through the list of a back end: all names, and those that `strange` does not find as they are recorded."""
    names, suspects, batch = Names(), Suspects(), list[T]()

    async def look() -> None:
        page = list(batch)
        batch.clear()
        for name in await run.records.read(lambda connection: strange(connection, page)):
            suspects.add(name)

    async with peer.listing() as came:
        async for one in objects:
            names.add(one.name if isinstance(one, SnapshotInfo) else one.digest)
            batch.append(one)
            if len(batch) == PAGE:
                await look()
            came()
    await look()
    return names, suspects


async def check_tombstones(
    run: Run,
    *,
    types: Sequence[str],
    backend: str,
    exists: Callable[[str, str], Awaitable[bool]],
    remover: Remover,
) -> None:
    """Tell what was to be removed long ago and is still noted; `exists` asks the back end for a type and key."""
    limit = now() - int(TOMBSTONE_SECONDS * 1e6)
    after, left = 0, []
    while page := await run.records.read(lambda c: _old(c, types, backend, limit, after)):  # noqa: B023
        for number, type, key in page:
            left.append((number, type, key, await exists(type, key)))
        after = page[-1][0]
        if len(left) > SUSPECTS:
            break
    if not left:
        return
    if run.options.repair:
        # An ingest that is gone may have become a blob, which the remover sees to.
        gone = [number for number, type, _, there in left if not there and type != "ingest"]
        await run.records.database.write(lambda connection: tombstones.drop(connection, gone))
        await remover.run()
    for number, type, key, there in left:
        due = await run.records.read(
            lambda c: c.execute("SELECT 1 FROM tombstones WHERE id = ?", (number,)).fetchone() is not None  # noqa: B023
        )
        if not due and not run.options.repair:
            continue  # removed meanwhile
        await run.report(
            Finding(
                kind="tombstone",
                type=f"snapshot/{backend}" if type == "snapshot" else type,
                id=key,
                detail="was to be removed long ago, and " + ("is still there" if there else "is gone, but still noted"),
                done="" if due else ("removed" if there else "no longer noted"),
                settled=not due,
            )
        )


def _old(
    connection: sqlite3.Connection, types: Sequence[str], backend: str, limit: int, after: int
) -> list[tuple[int, str, str]]:
    marks = ", ".join("?" for _ in types)
    return connection.execute(
        f"SELECT id, type, key FROM tombstones WHERE type IN ({marks}) AND backend = ? "  # noqa: S608
        "AND max(created_at, until) < ? AND id > ? ORDER BY id LIMIT ?",
        (*types, backend, limit, after, PAGE),
    ).fetchall()


async def there(asking: Awaitable[object]) -> bool:
    try:
        await asking
    except NotFound:
        return False
    return True


def sentence(error: CarinaError) -> str:
    return str(error) or type(error).__name__
