"""The check of everything: the records against one another, then each back end against the records.

A back end that does not answer is reported as unchecked, and so is one that is recorded and not there.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Final, Protocol

from carina.check import Finding, Options, Summary, Unchecked
from carina.errors import CarinaError, FailedPrecondition
from carina.sqlite import now
from metadatad.checkcontent import ContentCheck
from metadatad.checkingests import IngestCheck
from metadatad.checkrecords import RecordCheck
from metadatad.checkrun import Run, sentence
from metadatad.checksnapshots import SnapshotCheck
from metadatad.records import Records
from metadatad.sides import ContentSide, SnapshotSide

WAITING: Final = 256
"""Results that wait for whoever reads them at the most."""
Result = Finding | Unchecked | Summary


class Backends(Protocol):
    """What the check needs to know of the back ends."""

    def content_side(self) -> ContentSide: ...

    def snapshot_sides(self) -> Mapping[str, SnapshotSide]: ...


class Check:
    """`carina.check.Checker`."""

    def __init__(self, records: Records, backends: Backends) -> None:
        self._records = records
        self._backends = backends
        self._started = now()
        self._turn = asyncio.Lock()

    async def check(self, options: Options) -> AsyncGenerator[Result, None]:
        if self._turn.locked():
            raise FailedPrecondition("another check is running: wait until it is done")
        async with self._turn:
            results: asyncio.Queue[Result | None] = asyncio.Queue(WAITING)
            work = asyncio.get_running_loop().create_task(self._work(options, results), name="check")
            try:
                while (result := await results.get()) is not None:
                    yield result
                await work
            finally:
                work.cancel()
                await asyncio.wait([work])

    async def _work(self, options: Options, results: asyncio.Queue[Result | None]) -> None:
        try:
            run = Run(records=self._records, options=options, report=results.put, started=self._started)
            await self._parts(run)
        except Exception:
            await results.put(None)
            raise
        else:
            count = run.count
            await results.put(
                Summary(
                    content=count["content"],
                    snapshots=count["snapshots"],
                    records=count["records"],
                    hashed=count["hashed"],
                    hashed_bytes=count["hashed_bytes"],
                )
            )
            await results.put(None)

    async def _parts(self, run: Run) -> None:
        await RecordCheck(run, self._records.database.path).check()
        content = self._backends.content_side()
        for part in (ContentCheck(run, content), IngestCheck(run, content)):
            try:
                await part.check()
            except CarinaError as error:
                await run.report(Unchecked(name=content.peer.name, reason=sentence(error)))
                break
        sides = self._backends.snapshot_sides()
        for side in sides.values():
            try:
                await SnapshotCheck(run, side).check()
            except CarinaError as error:
                await run.report(Unchecked(name=side.peer.name, reason=sentence(error)))
        for (name,) in await self._records.read(
            lambda c: c.execute("SELECT snapshotter FROM snapshots UNION SELECT snapshotter FROM intents").fetchall()
        ):
            if name not in sides:
                reason = "snapshots of it are recorded, and it is not loaded"
                await run.report(Unchecked(name=f"snapshotter {name}", reason=reason))
