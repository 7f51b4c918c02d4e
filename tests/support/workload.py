"""What clients do all day, small: images with their blobs and snapshots come and go, labels change, garbage goes.

Everything acknowledged is in the ledger. `found` reads everything back, and `differences` holds the records of
metadatad against what contentd and snapshotd have, both ways.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from carina import context
from carina.check import Finding, Options
from carina.check.client import RemoteChecker
from carina.content.client import RemoteContentStore
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import CarinaError, NotFound, Unavailable
from carina.events import Edge, Envelope, Numbered
from carina.events.client import RemoteEventLog
from carina.gc.client import RemoteCollector
from carina.images import Image
from carina.images.client import RemoteImageStore
from carina.leases import Lease
from carina.leases.client import RemoteLeaseManager
from carina.rpc.client import connect
from carina.snapshots.client import RemoteSnapshotter
from carina.typed import TypedValue
from support.ledger import ABSENT, Key, Ledger, Values, present

NAMESPACE = "one"
REFERENCE = "containerd.io/gc.ref"
ROOT = {"containerd.io/gc.root": "x"}
SECONDS = 30.0
T = TypeVar("T")


class Clients:
    """Clients of metadatad, of a snapshotter behind it, and of contentd directly."""

    def __init__(self, state: Path, snapshotter: str = "native") -> None:
        self._channels = [connect(f"unix://{state}/{name}.sock") for name in ("metadatad", "contentd")]
        metadata, content = self._channels
        self.content = RemoteContentStore(metadata)
        self.snapshotter = RemoteSnapshotter(metadata, snapshotter)
        self.images = RemoteImageStore(metadata)
        self.leases = RemoteLeaseManager(metadata)
        self.collector = RemoteCollector(metadata)
        self.events = RemoteEventLog(metadata)
        self.checker = RemoteChecker(metadata)
        self.raw = RemoteContentStore(content)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


@contextlib.asynccontextmanager
async def clients(state: Path) -> AsyncIterator[Clients]:
    made = Clients(state)
    try:
        with context.within(namespace=NAMESPACE):
            yield made
    finally:
        made.close()


def data_of(name: str) -> bytes:
    return f"the bytes of {name}\n".encode() * 300


async def turn(own: Clients, ledger: Ledger, name: str, previous: str = "") -> None:
    """Make an image called `name`, with all that belongs to it, and remove that of an earlier turn."""
    await make_image(own, ledger, name)
    await change_labels(own, ledger, name)
    await use_content_directly(own, ledger, name)
    await give_up(own, ledger, name)
    await tell(own, ledger, name)
    if previous:
        await remove_image(own, ledger, previous)


async def make_image(own: Clients, ledger: Ledger, name: str) -> None:
    """As a pull does: under a lease until the image's record keeps the rest."""
    lease = ("lease", f"lease-{name}")
    await ledger.step({lease: present(lease[1])}, own.leases.create(Lease(id=lease[1])))
    with context.within(namespace=NAMESPACE, lease=lease[1]):
        layer = await write_blob(own, ledger, f"layer-{name}", {})
        await make_snapshot(own, ledger, name)
        labels = {f"{REFERENCE}.snapshot.native": f"chain-{name}"}
        config = await write_blob(own, ledger, f"config-{name}", labels)
        labels = {f"{REFERENCE}.content.0": config, f"{REFERENCE}.content.1": layer}
        manifest = await write_blob(own, ledger, f"manifest-{name}", labels)
        target = Descriptor(
            media_type="application/vnd.oci.image.manifest.v1+json",
            digest=manifest,
            size=len(data_of(f"manifest-{name}")),
        )
        image = Image(name=f"image-{name}", target=target)
        await ledger.step({("image", image.name): present(manifest)}, own.images.create(image))
    await ledger.step({lease: ABSENT}, own.leases.delete(lease[1]))


async def write_blob(own: Clients, ledger: Ledger, name: str, labels: Mapping[str, str]) -> Digest:
    data = data_of(name)
    digest = Digest.of(data)
    async with await own.content.writer(name, total=len(data)) as writer:
        await writer.write(data)
        await ledger.step({("blob", name): blob(data, labels)}, writer.commit(expected=digest, labels=labels))
    return digest


def blob(data: bytes, labels: Mapping[str, str]) -> Values:
    return present((data, tuple(sorted(labels.items()))))


async def make_snapshot(own: Clients, ledger: Ledger, name: str) -> None:
    key, text = f"active-{name}", f"a file of {name}"
    active = ("snapshot", key)
    mounts = await ledger.step({active: present(text) | present("")}, own.snapshotter.prepare(key))
    await asyncio.to_thread(Path(mounts[0].source, "file").write_text, text)
    commit = own.snapshotter.commit(f"chain-{name}", key)
    await ledger.step({active: ABSENT, ("snapshot", f"chain-{name}"): present(text)}, commit)


async def change_labels(own: Clients, ledger: Ledger, name: str) -> None:
    digest = await write_blob(own, ledger, f"rooted-{name}", ROOT)
    info = await own.content.info(digest)
    labels = {**info.labels, "turn": name}
    changed = own.content.update(type(info)(digest=digest, labels=labels))
    await ledger.step({("blob", f"rooted-{name}"): blob(data_of(f"rooted-{name}"), labels)}, changed)


async def use_content_directly(own: Clients, ledger: Ledger, name: str) -> None:
    """Of contentd, which keeps labels as well where it is asked to."""
    for kept in (True, False):
        key = f"raw-{name}-{kept}"
        data = data_of(key)
        digest = Digest.of(data)
        async with await own.raw.writer(key, expected=digest) as writer:
            await writer.write(data)
            commit = writer.commit(expected=digest, labels={"first": name})
            await ledger.step({("raw", key): blob(data, {"first": name})}, commit)
        info = await own.raw.info(digest)
        changed = own.raw.update(type(info)(digest=digest, labels={"second": name}))
        await ledger.step({("raw", key): blob(data, {"second": name})}, changed)
    await ledger.step({("raw", key): ABSENT}, own.raw.delete(digest))


async def give_up(own: Clients, ledger: Ledger, name: str) -> None:
    """Ingests and snapshots that are not finished."""
    async with await own.content.writer(f"abandoned-{name}") as writer:
        await writer.write(data_of(name))
    await own.content.abort(f"abandoned-{name}")
    async with await own.content.writer(f"left-{name}") as writer:
        await writer.write(data_of(name))
    key = f"scratch-{name}"
    prepare = own.snapshotter.prepare(key, f"chain-{name}", ROOT)
    await ledger.step({("snapshot", key): present(f"a file of {name}")}, prepare)
    await ledger.step({("snapshot", key): ABSENT}, own.snapshotter.remove(key))


async def tell(own: Clients, ledger: Ledger, name: str) -> None:
    """An event of a source that numbers its events: it is in the log once."""
    event = TypedValue(type_url="work", value=name.encode())
    envelope = Envelope(timestamp=datetime.now(UTC), namespace=NAMESPACE, topic=f"/work/{name}", event=event)
    append = own.events.append(f"source-{name}", [Numbered(number=1, envelope=envelope)])
    await ledger.step({("event", f"/work/{name}"): present(1)}, append)


async def remove_image(own: Clients, ledger: Ledger, name: str) -> None:
    """What only the image kept goes, at the latest with the next collection that is waited for."""
    image = ("image", f"image-{name}")
    kept = [key for key in ledger.allowed() if _belongs(key, name)]
    goes = {key: ledger.allowed()[key] | ABSENT for key in kept}
    await ledger.step({image: ABSENT, **goes}, own.images.delete(image[1]))
    await ledger.step(dict.fromkeys(kept, ABSENT), own.collector.run(sync=True))


def _belongs(key: Key, name: str) -> bool:
    blobs = {f"{part}-{name}" for part in ("layer", "config", "manifest")}
    return key == ("snapshot", f"chain-{name}") or (key[0] == "blob" and key[1] in blobs)


async def found(own: Clients, keys: Iterable[Key]) -> dict[Key, Hashable]:
    """What is there now: every byte is read again."""
    readers = {"lease": _lease, "image": _image, "blob": _blob, "raw": _raw, "snapshot": _snapshot, "event": told}
    result: dict[Key, Hashable] = {}
    for kind, name in keys:
        try:
            result[kind, name] = await until_answered(lambda: readers[kind](own, name))  # noqa: B023
        except NotFound:
            result[kind, name] = None
        except CarinaError as error:
            result[kind, name] = str(error)
    return result


async def until_answered(call: Callable[[], Awaitable[T]]) -> T:
    """Services that come back are found again after a moment."""
    limit = time.monotonic() + SECONDS
    while True:
        try:
            return await call()
        except Unavailable:
            if time.monotonic() > limit:
                raise
        await asyncio.sleep(0.02)


async def told(own: Clients, topic: str) -> Hashable:
    """How often an event is in the log."""
    entries = own.events.read(Edge.OLDEST, [f'topic=="{topic}"'], follow=False)
    return len([entry async for entry in entries if entry.envelope is not None]) or None


async def _lease(own: Clients, name: str) -> Hashable:
    return name if name in {lease.id for lease in await own.leases.list()} else None


async def _image(own: Clients, name: str) -> Hashable:
    return (await own.images.get(name)).target.digest


async def _blob(own: Clients, name: str) -> Hashable:
    return await _read(own.content, name)


async def _raw(own: Clients, name: str) -> Hashable:
    return await _read(own.raw, name)


async def _read(store: RemoteContentStore, name: str) -> Hashable:
    info = await store.info(Digest.of(data_of(name)))
    async with await store.reader(info.digest) as reader:
        data = await reader.read(0, info.size) if info.size else b""
    return data, tuple(sorted(info.labels.items()))


async def _snapshot(own: Clients, name: str) -> Hashable:
    info = await own.snapshotter.stat(name)
    if info.kind.name == "ACTIVE":
        mounts = await own.snapshotter.mounts(name)
        return _text(mounts[0].source)
    view = f"view-{name}"
    mounts = await own.snapshotter.view(view, name, ROOT)
    try:
        return _text(mounts[0].source)
    finally:
        await own.snapshotter.remove(view)


def _text(source: str) -> str:
    """What the file holds; nothing, where a file that nobody synced has got its size and not its bytes."""
    path = Path(source, "file")
    return path.read_text().strip("\0") if path.exists() else ""


async def differences(own: Clients, root: Path) -> list[str]:
    """Where the records and the stores disagree, once what was cut off has been settled."""
    limit = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(CarinaError):
            await own.collector.run(sync=True)
            if not (result := await _compare(own, root) or await _checked(own)):
                return []
        if time.monotonic() > limit:
            return result
        await asyncio.sleep(0.05)


async def _compare(own: Clients, root: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(f"file:{root}/metadatad/metadata.sqlite?mode=ro", uri=True)) as connection:
        blobs = _column(connection, "SELECT digest FROM blobs")
        ingests = _column(connection, "SELECT backend_ref FROM ingests")
        # The writer of such an ingest can commit again, and if nobody does the blob goes when the ingest expires.
        expected = _column(connection, "SELECT expected FROM ingests")
        snapshots = _column(connection, "SELECT backend_key FROM snapshots")
        # One that is looked for again is of a snapshot that was not there.
        tombstones = "SELECT 'tombstone ' || key FROM tombstones WHERE due = 0"
        open_ends = _column(connection, f"{tombstones} UNION ALL SELECT key FROM intents")
    # What is written to contentd directly has labels there, which metadatad's has not.
    stored = {str(info.digest) async for info in own.raw.walk() if not info.labels}
    refs = {status.ref for status in await own.raw.statuses() if not status.ref.startswith("raw-")}
    folder = root / "snapshotd-native"
    with contextlib.closing(sqlite3.connect(f"file:{folder}/metadata.db?mode=ro", uri=True)) as connection:
        rows = _column(connection, "SELECT name FROM snapshots")
        numbers = {str(number) for number in _column(connection, "SELECT id FROM snapshots")}
    return [
        *(f"{end} is not settled" for end in open_ends),
        *(f"blob {digest} is recorded and not stored" for digest in blobs - stored),
        *(f"blob {digest} is stored and not recorded" for digest in stored - blobs - expected),
        *(f"ingest {ref} is stored and not recorded" for ref in refs - ingests),
        *(f"snapshot {key} is recorded or there, not both" for key in snapshots ^ rows),
        *(f"directory {name} has no row, or the row no directory" for name in numbers ^ _names(folder / "snapshots")),
    ]


async def _checked(own: Clients) -> list[str]:
    """What `carina check` finds, but for what was written to contentd directly."""
    direct = {str(info.digest) async for info in own.raw.walk() if info.labels}
    direct |= {status.ref for status in await own.raw.statuses() if status.ref.startswith("raw-")}
    found = [one async for one in own.checker.check(Options()) if isinstance(one, Finding)]
    return [f"{one.type} {one.id}: {one.kind}, {one.detail}" for one in found if one.id not in direct]


def _column(connection: sqlite3.Connection, query: str) -> set[str]:
    return {value for (value,) in connection.execute(query)}


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def integrity(root: Path) -> dict[str, str]:
    """What SQLite finds wrong in the databases, which nobody has open."""
    result = {}
    paths = [root / "metadatad/metadata.sqlite", root / "snapshotd-native/metadata.db"]
    for path in filter(Path.exists, paths):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            (text,) = connection.execute("PRAGMA integrity_check").fetchone()
            if text != "ok":
                result[str(path)] = text
    return result
