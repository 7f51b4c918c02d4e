"""Content: records against the store, both ways, and the bytes against their digests.

A list of the store and a look at the records are never of one moment. So what does not fit is only a suspect, and is
looked at again, alone, in an order that no work under way can make look wrong, before it is told.
"""

import asyncio
import contextlib
import sqlite3
from dataclasses import dataclass
from typing import Final

from carina.aio.threads import in_thread
from carina.check import Finding
from carina.content import Info
from carina.digest import Digest
from carina.errors import CarinaError, NotFound, Unimplemented
from carina.integrity import Verdict
from metadatad import tombstones
from metadatad.checkrun import PAGE, SUSPECTS, Run, check_tombstones, compare, there
from metadatad.names import Names
from metadatad.sides import NOT_OURS, ContentSide

PARALLEL: Final = 4
"""Blobs that are read at once."""
CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the records know of a blob."""

    sizes: tuple[tuple[str, int], ...]
    """Namespaces with the sizes that they recorded."""
    expected: bool
    """An ingest is about to become it, or its removal is noted."""


class ContentCheck:
    def __init__(self, run: Run, side: ContentSide) -> None:
        self._run = run
        self._side = side
        self._asks = True
        self._judged: set[Digest] = set()

    async def check(self) -> None:
        names, suspects = await compare(self._run, self._side.peer, self._side.store.walk(), _strange)
        for name in suspects.names:
            with contextlib.suppress(NotFound):  # deleted meanwhile
                await self._look_again(Digest(name))
        await self._run.too_many(self._side.peer.name, suspects)
        await self._missing(names)
        if self._run.options.hash:
            await self._hash()
        await check_tombstones(
            self._run,
            types=("content", "ingest"),
            backend="",
            exists=self._exists,
            remover=self._side.remover,
        )

    async def _look_again(self, digest: Digest) -> None:
        """Nobody can be at work on the blob meanwhile: whoever is has a claim, and then it is left alone."""
        async with self._side.claims.delete(("content", digest)) as free:
            if not free:
                return
            before = await self._facts(digest)
            try:
                async with self._side.peer.answering():
                    info = await self._side.store.info(digest)
            except NotFound:
                return
            if before != await self._facts(digest):
                return
        if before.sizes:
            await self._other_size(before, info)
        elif not before.expected:
            await self._orphan(info)

    async def _facts(self, digest: Digest) -> _Facts:
        def read(connection: sqlite3.Connection) -> _Facts:
            sizes = connection.execute("SELECT namespace, size FROM blobs WHERE digest = ? ORDER BY 1", (digest,))
            expected = connection.execute(
                "SELECT 1 FROM ingests WHERE expected = ?1 UNION ALL SELECT 1 FROM tombstones WHERE key = ?1 "
                "AND type = 'content' UNION ALL SELECT 1 FROM tombstones WHERE expected = ?1",
                (digest,),
            ).fetchone()
            return _Facts(tuple(sizes.fetchall()), expected is not None)

        return await self._run.records.read(read)

    async def _orphan(self, info: Info) -> None:
        done, settled = "", False
        if self._run.options.repair and self._run.options.remove_orphans:
            if self._side.own:
                bury = info.digest, info.size
                await self._run.records.database.write(lambda c: tombstones.bury_content(c, *bury))
                await self._side.remover.run()
                settled = not await self._exists("content", info.digest)
                done = "removed" if settled else ""
            else:
                done = f"left alone: {NOT_OURS}"
        await self._run.report(
            Finding(
                kind="orphaned",
                type="content",
                id=info.digest,
                detail=f"{self._side.peer.name} has it ({info.size} bytes), and no namespace has recorded it",
                done=done,
                settled=settled,
            )
        )

    async def _other_size(self, facts: _Facts, info: Info) -> None:
        wrong = [(namespace, size) for namespace, size in facts.sizes if size != info.size]
        if not wrong or await self._judge(info.digest, [namespace for namespace, _ in facts.sizes]):
            return
        if self._run.options.repair:
            change = "UPDATE blobs SET size = ? WHERE digest = ?"
            await self._run.records.database.write(lambda c: c.execute(change, (info.size, info.digest)) and None)
            self._side.forget(info.digest)
        for namespace, size in wrong:
            await self._run.report(
                Finding(
                    kind="size",
                    namespace=namespace,
                    type="content",
                    id=info.digest,
                    detail=f"it has {info.size} bytes, the record says {size}",
                    done="the record was corrected" if self._run.options.repair else "",
                    settled=self._run.options.repair,
                )
            )

    async def _missing(self, names: Names) -> None:
        after = ("", "")
        while True:
            start = after
            page: list[tuple[str, str, int]] = await self._run.records.read(
                lambda c: c.execute(
                    "SELECT namespace, digest, created_at FROM blobs WHERE (namespace, digest) > (?, ?) "
                    "ORDER BY namespace, digest LIMIT ?",
                    (*start, PAGE),  # noqa: B023
                ).fetchall()
            )
            for row in page:
                if row[1] not in names and await self._is_missing(*row):
                    await self._run.report(
                        Finding(
                            kind="missing",
                            namespace=row[0],
                            type="content",
                            id=row[1],
                            detail=f"{self._side.peer.name} does not have it: pull what names it again",
                        )
                    )
            self._run.count["content"] += len(page)
            if len(page) < PAGE:
                return
            after = page[-1][:2]

    async def _is_missing(self, namespace: str, digest: str, created: int) -> bool:
        """The store first, then the record: a blob is there before its record is, and goes after it."""
        async with self._side.claims.use(("content", Digest(digest))):
            if await self._exists("content", digest):
                return False
            row = await self._run.records.read(
                lambda c: c.execute(
                    "SELECT created_at FROM blobs WHERE namespace = ? AND digest = ?", (namespace, digest)
                ).fetchone()
            )
        return row is not None and row[0] == created

    async def _hash(self) -> None:
        after = ""
        while True:
            start = after
            page: list[str] = await self._run.records.read(
                lambda c: [
                    digest
                    for (digest,) in c.execute(
                        "SELECT DISTINCT digest FROM blobs WHERE digest > ? ORDER BY digest LIMIT ?",
                        (start, PAGE),  # noqa: B023
                    )
                ]
            )
            await self._hash_all([Digest(name) for name in page])
            if len(page) < PAGE:
                return
            after = page[-1]

    async def _hash_all(self, digests: list[Digest]) -> None:
        waiting = list(reversed(digests))
        failures: list[CarinaError] = []

        async def work() -> None:
            while waiting and not failures:
                digest = waiting.pop()
                try:
                    await self._judge(digest, None)
                except NotFound:
                    pass  # missing, and told already, or deleted meanwhile
                except CarinaError as error:
                    failures.append(error)

        async with asyncio.TaskGroup() as tasks:
            for number in range(PARALLEL):
                tasks.create_task(work(), name=f"hash {number}")
        if failures:
            raise failures[0]

    async def _judge(self, digest: Digest, namespaces: list[str] | None) -> bool:
        """Read a blob again, tell its damage, and have it put aside where it is to be repaired; True if damaged."""
        if digest in self._judged:
            return True
        found = await self._verdict(digest)
        self._run.count["hashed"] += 1
        self._run.count["hashed_bytes"] += found.size
        if not found.problem:
            return False
        if namespaces is None:
            namespaces = [namespace for namespace, _ in (await self._facts(digest)).sizes]
        if found.quarantined:
            self._side.forget(digest)
        if len(self._judged) < SUSPECTS:
            self._judged.add(digest)
        done = "put aside: pull what names it again" if found.quarantined else ""
        if self._run.options.repair and not found.quarantined:
            done = f"left alone: {self._side.peer.name} can't put it aside"
        await self._run.report(
            Finding(
                kind="damaged",
                namespace=",".join(namespaces),
                type="content",
                id=digest,
                detail=found.problem,
                done=done,
            )
        )
        return True

    async def _verdict(self, digest: Digest) -> Verdict:
        if self._asks:
            try:
                async with self._side.peer.working():
                    return await self._side.integrity.verify(digest, quarantine=self._run.options.repair)
            except Unimplemented:
                self._asks = False
        return await self._read(digest)

    async def _read(self, digest: Digest) -> Verdict:
        """A store that can't look by itself sends the bytes."""
        hasher, offset = digest.hasher(), 0
        async with self._side.peer.answering():
            reader = await self._side.store.reader(digest)
        async with reader:
            while True:
                async with self._side.peer.working():
                    data = await reader.read(offset, CHUNK)
                if not data:
                    break
                await in_thread(hasher.update, data)
                offset += len(data)
        found = f"{digest.algorithm}:{hasher.hexdigest()}"
        return Verdict(size=offset, problem="" if found == digest else f"its bytes are {found}")

    async def _exists(self, type: str, key: str) -> bool:
        async with self._side.peer.answering():
            store = self._side.store
            return await there(store.info(Digest(key)) if type == "content" else store.status(key))


def _strange(connection: sqlite3.Connection, infos: list[Info]) -> list[str]:
    """What no namespace has recorded, or not with that size."""
    found = []
    for info in infos:
        sizes = connection.execute("SELECT size FROM blobs WHERE digest = ?", (info.digest,)).fetchall()
        if not sizes or any(size != info.size for (size,) in sizes):
            found.append(str(info.digest))
    return found
