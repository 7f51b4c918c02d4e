"""The namespaced view of one snapshotter, which itself knows no namespaces.

No transaction and no lock but that of the snapshot's own key is held while the back end works. A call that makes
something is preceded by an intent under a key that was never used before; what a crash leaves is settled (`settle`).
Removing a snapshot removes its record; the back end's part is the collector's.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from carina import context, faults, labels
from carina.aio.finish import finish
from carina.aio.locks import KeyedLock
from carina.errors import (
    AlreadyExists,
    CarinaError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from carina.filters import matcher
from carina.leases import Resource
from carina.mount import Mount
from carina.snapshots import Info, Snapshotter, Usage
from carina.snapshots.fields import fields as info_fields
from metadatad import rpc, snaprows
from metadatad.claims import Claims
from metadatad.columns import validate_name
from metadatad.peers import Peer
from metadatad.records import Records, Transaction
from metadatad.snaprows import Intent, Row

UNCERTAIN: Final = (Unavailable, DeadlineExceeded)
"""What a call fails with that may have happened all the same."""
CALM_SECONDS: Final = 2.0
"""How long a back end that was silent must have answered again before a commit that it was sent counts as not made:
what waited in its socket comes first."""
Begin = Callable[[Transaction, Intent], Intent | AlreadyExists]


class NamespacedSnapshotter:
    """`carina.snapshots.Snapshotter` of the call's namespace."""

    def __init__(self, name: str, records: Records, backend: Snapshotter, *, peer: Peer, claims: Claims) -> None:
        self.name = name
        self.peer = peer
        self.backend = backend
        self.gone = False
        """Whether it is being taken out, and no call may begin any more."""
        self._records = records
        self._claims = claims
        self._keys = KeyedLock("snapshot")
        self._mine: set[int] = set()

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return await self._create("prepare", key, parent, labels or {})

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return await self._create("view", key, parent, labels or {})

    async def mounts(self, key: str) -> list[Mount]:
        row = await self._get(key)
        async with self.peer.answering():
            return await self.backend.mounts(row.backend_key)

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        namespace, stated = context.namespace(), _validated(labels or {})
        validate_name(name, "snapshot name")
        intent = Intent(
            namespace=namespace,
            snapshotter=self.name,
            action="commit",
            key=name,
            backend_key="",
            parent=parent,
            source=key,
            labels=stated,
            lease=context.current().lease,
        )
        async with self._locked(namespace, {name, key}):
            await self._settle_earlier({name, key})
            async with self._intended(intent, snaprows.begin_commit) as intent:
                await self._commit(intent)

    async def remove(self, key: str) -> None:
        call, namespace = context.current(), context.namespace()

        def discard(transaction: Transaction) -> None:
            connection = transaction.connection
            snaprows.get(connection, namespace, self.name, key)
            snaprows.must_be_free(connection, namespace, self.name, key)
            snaprows.discard(connection, namespace, self.name, key)
            resource = Resource(type=f"snapshots/{self.name}", id=key)
            snaprows.release(connection, namespace, call.lease, resource)
            transaction.emit(namespace, "/snapshot/remove", rpc.snapshot_remove(key, self.name))
            transaction.deletion = True

        async with self._locked(namespace, {key}):
            await self._settle_earlier({key})
            await self._records.write(discard)
            faults.point("metadatad.snapshot.discarded")

    async def stat(self, key: str) -> Info:
        row = await self._get(key)
        async with self.peer.answering():
            return _overlaid(await self._known(row), row)

    async def update(self, info: Info, fields: Sequence[str] = ()) -> Info:
        namespace = context.namespace()
        for field in fields:
            if field != "labels" and not field.startswith("labels."):
                raise InvalidArgument(f"field {field!r} of snapshot {info.name!r} can't be updated")
        paths = list(fields) or ["labels"]
        async with self._locked(namespace, {info.name}):
            row = await self._get(info.name)
            changed = labels.changed(row.info.labels, _validated(info.labels), paths)
            told = [path for path in paths if path == "labels" or snaprows.inherited({path.partition(".")[2]: ""})]
            async with self.peer.answering():
                backend = await self._known(row)
                if told:
                    new = Info(name=row.backend_key, labels=snaprows.inherited(changed))
                    backend = await self.backend.update(new, told)
            row = await self._records.write(
                lambda transaction: snaprows.relabel(transaction, namespace, self.name, new=info, fields=paths)
            )
        return _overlaid(backend, row)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        namespace = context.namespace()
        matches = matcher(filters, info_fields)
        rows = await self._records.read(lambda connection: snaprows.all_of(connection, namespace, self.name))
        if not rows:
            return
        wanted = {row.backend_key for row in rows}
        found = {}
        async with self.peer.listing() as came:
            async for info in self.backend.walk():
                came()
                if info.name in wanted:
                    found[info.name] = info
        for row in rows:
            if row.backend_key in found:
                info = _overlaid(found[row.backend_key], row)
                if matches(info):
                    yield info

    async def usage(self, key: str) -> Usage:
        row = await self._get(key)
        async with self.peer.working():
            return await self.backend.usage(row.backend_key)

    async def cleanup(self) -> None:
        async with self.peer.working():
            await self.backend.cleanup()

    async def close(self) -> None:
        """Nothing is open here; the back end belongs to the registry."""

    async def settle(self) -> None:
        """End what a crash or a lost answer left under way.

        Raises:
            Unavailable: the back end does not answer; the rest stays for the next time.
        """
        for intent in await self._records.read(lambda connection: snaprows.intents(connection, self.name)):
            if intent.id in self._mine:
                continue
            async with self._locked(intent.namespace, {intent.key, intent.source} - {""}):
                await self._settle(intent)

    async def _settle_earlier(self, keys: set[str]) -> None:
        """Settle what is still open about these keys; they are locked by the caller."""
        namespace = context.namespace()
        for intent in await self._records.read(lambda connection: snaprows.intents(connection, self.name)):
            mine = intent.namespace == namespace and {intent.key, intent.source} & keys
            if mine and intent.id not in self._mine:
                await self._settle(intent)

    async def _settle(self, intent: Intent, *, insist: bool = False) -> None:
        """`insist`: ask also a back end that is known not to answer."""
        happened = False
        if intent.action == "commit":
            happened = await self._committed(intent, insist=insist)
            calm = self.peer.breaker.recovered + CALM_SECONDS - time.monotonic()
            if not happened and calm > 0:
                await asyncio.sleep(calm)
                happened = await self._committed(intent, insist=insist)

        await self._records.write(lambda transaction: snaprows.conclude(transaction, intent, happened=happened))

    async def _committed(self, intent: Intent, *, insist: bool) -> bool:
        """Whether the back end has what the commit was to make."""
        asking = self.peer.probing(self.peer.answer_seconds) if insist else self.peer.answering()
        try:
            async with asking:
                made = await self.backend.stat(intent.backend_key)
        except NotFound:
            return False
        return intent.is_committed_as(made)

    async def _get(self, key: str) -> Row:
        namespace = context.namespace()
        return await self._records.read(lambda connection: snaprows.get(connection, namespace, self.name, key))

    async def _known(self, row: Row) -> Info:
        try:
            return await self.backend.stat(row.backend_key)
        except NotFound as error:
            raise NotFound(f"snapshot {row.info.name!r} is recorded, but snapshotter {self.name} lost it") from error

    async def _create(self, action: str, key: str, parent: str, stated: Mapping[str, str]) -> list[Mount]:
        namespace = context.namespace()
        validate_name(key, "snapshot key")
        intent = Intent(
            namespace=namespace,
            snapshotter=self.name,
            action=action,
            key=key,
            backend_key="",
            parent=parent,
            labels=_validated(stated),
            lease=context.current().lease,
        )
        async with self._locked(namespace, {key}):
            async with self._intended(intent, snaprows.begin_create) as intent:
                return await self._make(intent)

    async def _make(self, intent: Intent) -> list[Mount]:
        make = self.backend.prepare if intent.action == "prepare" else self.backend.view
        try:
            async with self.peer.working():
                mounts = await make(intent.backend_key, intent.backend_parent, snaprows.inherited(intent.labels))
            faults.point("metadatad.snapshot.made")
        except AlreadyExists as error:
            if not intent.labels.get(labels.SNAPSHOT_REF):
                raise CarinaError(f"snapshotter {self.name} says of a new key: {error}") from error
            raise await self._adopt(intent) from error
        await finish(self._records.write(lambda transaction: snaprows.finish_create(transaction, intent)))
        faults.point("metadatad.snapshot.recorded")
        return mounts

    async def _adopt(self, intent: Intent) -> AlreadyExists:
        """A remote snapshotter has the target already: record that."""
        target = intent.labels[labels.SNAPSHOT_REF]
        found = await self._find_target(intent, target)
        async with self._claims.use(("snapshot", self.name, found.name)):
            async with self.peer.answering():
                await self.backend.stat(found.name)
            await finish(self._records.write(lambda transaction: snaprows.adopt(transaction, intent, found)))
        return AlreadyExists(f"snapshot {target!r} already exists at snapshotter {self.name}")

    async def _find_target(self, intent: Intent, target: str) -> Info:
        quoted = target.replace("\\", "\\\\").replace('"', '\\"')
        async with self.peer.listing() as came:
            async for info in self.backend.walk([f'labels."{labels.SNAPSHOT_REF}"=="{quoted}"']):
                came()
                if info.labels.get(labels.SNAPSHOT_REF) == target and info.parent == intent.backend_parent:
                    return info
        raise NotFound(f"snapshotter {self.name} says that it has the target {target!r}, and does not list it")

    async def _commit(self, intent: Intent) -> None:
        """The back end's answer and the record belong together: whoever gives up waiting gets both or neither.

        Cut off, the back end might finish all the same, after we had asked whether it did.
        """
        with context.no_deadline():
            await finish(self._commit_and_record(intent))

    async def _commit_and_record(self, intent: Intent) -> None:
        parent = intent.backend_parent if intent.rebase else ""
        told = snaprows.inherited(intent.labels)
        try:
            async with self.peer.working():
                await self.backend.commit(intent.backend_key, intent.backend_source, told, parent)
                if parent and (await self.backend.stat(intent.backend_key)).parent != parent:
                    raise _not_rebased(intent)
            faults.point("metadatad.snapshot.committed")
        except NotFound as error:
            raise NotFound(f"snapshot {intent.source!r} is recorded, but snapshotter {self.name} lost it") from error
        await self._records.write(lambda transaction: snaprows.finish_commit(transaction, intent))
        faults.point("metadatad.snapshot.renamed")

    @contextlib.asynccontextmanager
    async def _intended(self, intent: Intent, begin: Begin) -> AsyncIterator[Intent]:
        """The intent is written, and stays until the block has recorded its outcome.

        A prepare that fails in any way is undone, also if the back end carries it out later.
        A commit whose outcome is unknown stays to be settled.
        """

        def write(transaction: Transaction) -> Intent | AlreadyExists:
            if self.gone:  # nothing comes between this transaction and the one that found no records
                raise InvalidArgument(f"snapshotter {self.name!r} is not loaded")
            return begin(transaction, intent)

        begun = await self._records.write(write)
        if isinstance(begun, AlreadyExists):
            raise begun
        self._mine.add(begun.id)
        try:
            faults.point("metadatad.snapshot.intended")
            yield begun
        except BaseException as error:
            certain = isinstance(error, CarinaError) and not isinstance(error, UNCERTAIN)
            if begun.action == "commit" and not certain:
                await finish(self._ask(begun))
            elif not (isinstance(error, AlreadyExists) and begun.action != "commit"):
                awaited = begun.action != "commit" and not certain
                await finish(
                    self._records.write(lambda transaction: snaprows.abandon(transaction, begun, awaited=awaited))
                )
            raise
        finally:
            self._mine.discard(begun.id)

    async def _ask(self, intent: Intent) -> None:
        with contextlib.suppress(*UNCERTAIN):  # then it is settled with the next collection, or at start-up
            await self._settle(intent, insist=True)

    @contextlib.asynccontextmanager
    async def _locked(self, namespace: str, keys: set[str]) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for key in sorted(keys):
                await stack.enter_async_context(self._keys.hold((namespace, key)))
            yield


def _not_rebased(intent: Intent) -> FailedPrecondition:
    """Snapshotters from before the parent could be named at commit take the word for nothing and answer well."""
    return FailedPrecondition(
        f"snapshot {intent.source!r}: snapshotter {intent.snapshotter} can't put it on {intent.parent!r} at commit"
    )


def _validated(stated: Mapping[str, str]) -> dict[str, str]:
    labels.validate(stated)
    return dict(stated)


def _overlaid(backend: Info, row: Row) -> Info:
    """What the back end says, under the names and with the labels of the record."""
    return replace(row.info, kind=backend.kind, labels={**backend.labels, **row.info.labels})
