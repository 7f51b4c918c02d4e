"""`Check`: whatever is wrong between records and stores is told, and nothing that is in order."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from carina import context
from carina.check import Finding, Options, Summary, Unchecked
from carina.check.client import RemoteChecker
from carina.config import ProxyPlugin
from carina.content import Info
from carina.content.server import ContentService
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import AlreadyExists, DataLoss, FailedPrecondition, NotFound
from carina.images import Image
from carina.rpc.client import connect
from carina.rpc.server import serve
from conformance.content_suite import get, put
from contentd.store import LocalContentStore
from metadatad.backends import Settings
from metadatad.check import Check
from metadatad.names import Names
from metadatad.snaprows import Intent
from support.content import directory
from support.views import View, metadata, view

ROOT = {"containerd.io/gc.root": "x"}


@pytest.fixture
async def there() -> AsyncIterator[View]:
    with directory() as path:
        async with view(path) as found:
            with context.within(namespace="one"):
                yield found


async def checked(there: View, **options: bool) -> tuple[list[Finding], list[Unchecked], Summary]:
    channel = connect(there.address)
    try:
        results = [result async for result in RemoteChecker(channel).check(Options(**options))]
    finally:
        channel.close()
    findings = [result for result in results if isinstance(result, Finding)]
    unchecked = [result for result in results if isinstance(result, Unchecked)]
    (summary,) = [result for result in results if isinstance(result, Summary)]
    return findings, unchecked, summary


async def kinds(there: View, **options: bool) -> set[tuple[str, str, str]]:
    findings, unchecked, _ = await checked(there, **options)
    assert unchecked == []
    return {(found.kind, found.type, found.id) for found in findings}


async def execute(there: View, statement: str, *values: object) -> None:
    def run(connection: sqlite3.Connection) -> None:
        connection.execute(statement, values)

    await there.records.database.write(run)


def blob_path(there: View, digest: Digest) -> Path:
    return there.path / "contentd" / "blobs" / digest.algorithm / digest.hex


def spoil(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


async def test_all_in_order(there: View) -> None:
    """Content, ingests, snapshots, images and leases of two namespaces, as calls leave them, are in order."""
    digest = await put(there.content, b"data", ROOT)
    with context.within(namespace="two"):
        await put(there.content, b"data", ROOT)
        await there.snapshotter.prepare("active", labels=ROOT)
    await there.images.create(Image(name="image", target=Descriptor(media_type="x", digest=digest, size=4)))
    async with await there.content.writer("ref") as writer:
        await writer.write(b"half")
    await there.snapshotter.prepare("key", labels=ROOT)
    await there.snapshotter.commit("name", "key", ROOT)
    await there.snapshotter.view("view", "name", ROOT)

    findings, unchecked, summary = await checked(there)

    assert (findings, unchecked) == ([], [])
    assert (summary.content, summary.snapshots, summary.hashed, summary.hashed_bytes) == (2, 3, 1, 4)
    assert summary.records == 2 + 1 + 1 + 3


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
async def test_damaged_content_is_put_aside_and_brought_again(there: View, algorithm: str) -> None:
    """A damaged blob is told; repaired, its record keeps its labels, and whoever has the bytes can write them again."""
    digest = Digest.of(b"data", algorithm)
    async with await there.content.writer("ref", expected=digest) as writer:
        await writer.write(b"data")
        await writer.commit(expected=digest, labels=ROOT)
    await asyncio.to_thread(spoil, blob_path(there, digest), b"DATA")

    (found,), _, _ = await checked(there)
    assert (found.kind, found.namespace, found.id, found.done) == ("damaged", "one", digest, "")
    with pytest.raises(DataLoss, match="is damaged"):
        await get(there.content, digest)
    assert await kinds(there, hash=False) == set()

    (found,), _, _ = await checked(there, repair=True)
    assert (found.done, found.settled) == ("put aside: pull what names it again", False)
    assert await kinds(there) == {("missing", "content", digest)}
    with pytest.raises(NotFound):
        await get(there.content, digest)
    assert (await there.content.info(digest)).labels == ROOT

    async with await there.content.writer("again", total=4, expected=digest) as writer:
        await writer.write(b"data")
        with contextlib.suppress(AlreadyExists):  # the record
            await writer.commit(expected=digest)
    assert await get(there.content, digest) == b"data"
    assert (await there.content.info(digest)).labels == ROOT
    assert await kinds(there) == set()


async def test_lost_and_orphaned_content(there: View) -> None:
    """A blob that is gone from the store is missing; one that nothing records is listed, and goes only if asked."""
    lost = await put(there.content, b"lost", ROOT)
    await there.blobs.delete(lost)
    async with await there.blobs.writer("bare") as writer:
        await writer.write(b"stray")
        stray = await writer.commit()

    expected = {("missing", "content", str(lost)), ("orphaned", "content", str(stray))}
    assert await kinds(there) == expected
    assert await kinds(there, repair=True) == expected
    await there.collector.run(sync=True)
    assert await there.stored() == {stray}
    findings, _, _ = await checked(there, repair=True, remove_orphans=True)
    assert {(found.kind, found.done, found.settled) for found in findings} == {
        ("missing", "", False),
        ("orphaned", "removed", True),
    }
    assert await there.stored() == set()


async def test_size(there: View) -> None:
    """A record with another size than its sound blob is corrected."""
    digest = await put(there.content, b"data", ROOT)
    await execute(there, "UPDATE blobs SET size = 5")
    (found,), _, _ = await checked(there, repair=True, hash=False)
    assert (found.kind, found.detail, found.settled) == ("size", "it has 4 bytes, the record says 5", True)
    assert (await there.content.info(digest)).size == 4


async def test_ingests(there: View) -> None:
    """An ingest that its store lost is dropped; one that nothing records is removed if that is asked for."""
    async with await there.content.writer("lost") as writer:
        await writer.write(b"half")
    (status,) = await there.blobs.statuses()
    await there.blobs.abort(status.ref)
    async with await there.blobs.writer("stray") as writer:
        await writer.write(b"half")
    assert await kinds(there) == {("orphaned", "ingest", "stray")}  # the other one may be about to be opened
    await execute(there, "UPDATE ingests SET updated_at = 0")
    expected = {("orphaned", "ingest", "stray"), ("stuck", "ingest", "lost")}
    assert await kinds(there) == expected
    findings, _, _ = await checked(there, repair=True, remove_orphans=True)
    assert {(found.kind, found.id, found.settled) for found in findings} == {
        ("orphaned", "stray", True),
        ("stuck", "lost", True),
    }
    assert await there.blobs.statuses() == []
    assert await there.rows("ingests") == 0


async def test_snapshots(there: View) -> None:
    """Missing, orphaned and wrong snapshots, and a parent that is not recorded, are each told by their keys."""
    for name in ("lost", "base"):
        await there.snapshotter.prepare(f"make {name}", labels=ROOT)
        await there.snapshotter.commit(name, f"make {name}", ROOT)
    await there.snapshotter.prepare("top", "base", ROOT)
    await there.snapshotter.prepare("wrong", "", ROOT)
    keys = {name.split("/", 2)[2]: name for name in await there.trees_there()}
    await there.trees.remove(keys["lost"])
    await there.trees.prepare("stray")
    await execute(there, "UPDATE snapshots SET kind = 1 WHERE key = 'wrong'")
    snapshot = "snapshot/native"
    expected = {("missing", snapshot, "lost"), ("orphaned", snapshot, "stray"), ("mismatch", snapshot, "wrong")}
    assert await kinds(there) == expected

    await execute(there, "DELETE FROM snapshots WHERE key = 'base'")
    found = await kinds(there)
    assert found >= {*expected, ("dangling", snapshot, "top"), ("orphaned", snapshot, keys["base"])}
    findings, _, _ = await checked(there, repair=True, remove_orphans=True)
    done = {found.id: (found.done, found.settled) for found in findings if found.kind == "orphaned"}
    assert done == {
        "stray": ("removed", True),
        keys["base"]: ("to be removed when nothing stands on it any more", False),
    }


async def test_dangling(there: View) -> None:
    """An image whose target is not recorded is told."""
    digest = Digest.of(b"nowhere")
    await there.images.create(Image(name="image", target=Descriptor(media_type="x", digest=digest, size=4)))
    (found,), _, _ = await checked(there)
    assert (found.kind, found.type, found.id, found.detail) == (
        "dangling",
        "image",
        "image",
        f"its target {digest} is not recorded",
    )


async def test_edges(there: View) -> None:
    """References and pins that differ from the labels are told by their object, and stated again."""
    digest = await put(there.content, b"data", ROOT)
    await there.content.update(Info(digest=digest, labels={"containerd.io/gc.ref.content": digest}), ["labels"])
    await put(there.content, b"rooted", ROOT)
    await execute(there, "DELETE FROM pins")
    await execute(there, "UPDATE edges SET destination = 'content/nowhere'")
    await execute(
        there, "INSERT INTO edges (namespace, source, destination, kind) VALUES ('one', 'images/x', 'y', 'ref')"
    )
    expected = {("edges", "content", digest), ("edges", "content", Digest.of(b"rooted")), ("edges", "image", "x")}
    assert await kinds(there) == expected
    findings, _, _ = await checked(there, repair=True)
    assert {found.settled for found in findings} == {True}
    assert await kinds(there) == set()
    rows = await there.records.read(lambda c: c.execute("SELECT source, destination FROM edges").fetchall())
    assert rows == [(f"content/{digest}", f"content/{digest}")]


async def test_tombstones_and_intents(there: View) -> None:
    """What was to be removed or ended long ago is told, and settled by a repair."""
    digest = Digest.of(b"gone")
    await execute(there, "INSERT INTO tombstones (type, backend, key, created_at) VALUES ('content', '', ?, 0)", digest)
    await execute(
        there,
        "INSERT INTO intents (namespace, snapshotter, action, key, backend_key, details, created_at) VALUES "
        "('one', 'native', 'prepare', 'k', 'one/99/k', "
        """'{"namespace":"one","snapshotter":"native","action":"prepare","key":"k","backend_key":"one/99/k"}', 0)""",
    )
    expected = {("tombstone", "content", digest), ("intent", "snapshot/native", "k")}
    assert await kinds(there) == expected
    findings, _, _ = await checked(there, repair=True)
    assert {(found.kind, found.settled) for found in findings} == {("tombstone", True), ("intent", True)}
    await there.collector.run(sync=True)
    assert await kinds(there) == set()


async def test_repair_forgets_no_blob_that_an_ingest_became(there: View) -> None:
    """An ingest that was to be removed long ago, and became a blob, goes with the blob."""
    digest = await put(there.blobs, b"became")
    values = "('ingest', '', 'one/9/ref', ?, 0)"
    await execute(there, f"INSERT INTO tombstones (type, backend, key, expected, created_at) VALUES {values}", digest)
    await checked(there, repair=True)
    assert await there.stored() == set()


async def test_commit_without_its_parent_is_undone(there: View) -> None:
    """A repair records no commit on a parent that the back end took no notice of."""
    await there.snapshotter.prepare("below", labels=ROOT)
    await there.snapshotter.commit("parent", "below", labels=ROOT)
    await there.snapshotter.prepare("key", labels=ROOT)
    query = "SELECT key, backend_key FROM snapshots"
    backend_keys = dict(await there.records.read(lambda c: c.execute(query).fetchall()))
    intent = Intent(
        namespace="one",
        snapshotter="native",
        action="commit",
        key="name",
        backend_key="one/99/name",
        parent="parent",
        backend_parent=backend_keys["parent"],
        source="key",
        backend_source=backend_keys["key"],
        rebase=True,
    )
    await execute(
        there,
        "INSERT INTO intents (namespace, snapshotter, action, key, backend_key, details, created_at) "
        "VALUES ('one', 'native', 'commit', 'name', 'one/99/name', ?, 0)",
        msgspec.json.encode(intent).decode(),
    )
    await there.trees.commit("one/99/name", backend_keys["key"])
    findings, _, _ = await checked(there, repair=True)
    assert {found.done for found in findings if found.kind == "intent"} == {"undone"}
    with pytest.raises(NotFound):
        await there.snapshotter.stat("name")


async def test_a_store_that_is_away_is_unchecked() -> None:
    """What can't be asked is named, and its records are not taken for missing."""
    with directory() as path:
        async with view(path) as found:
            with context.within(namespace="one"):
                await put(found.content, b"data", ROOT)
                await found.snapshotter.prepare("key", labels=ROOT)
        async with metadata(path) as (_, registry, records, _):
            results = [result async for result in Check(records, registry).check(Options())]
    assert [part.name for part in results if isinstance(part, Unchecked)] == [
        "content back end content",
        "snapshotter native",
    ]
    assert [found for found in results if isinstance(found, Finding)] == []


async def test_one_check_at_a_time(there: View) -> None:
    """A second check is refused while one runs, and not after somebody gave that up."""
    lost = await put(there.content, b"lost", ROOT)
    await there.blobs.delete(lost)
    check = Check(there.records, there.registry)
    first = check.check(Options())
    assert isinstance(await anext(first), Finding)
    with pytest.raises(FailedPrecondition, match="another check is running"):
        await anext(check.check(Options()))
    await first.aclose()
    assert len([result async for result in check.check(Options())]) == 2


async def test_bytes_are_read_over_the_api_where_the_store_cannot_look(tmp_path: Path) -> None:
    """A foreign content store sends its bytes to be hashed; what is damaged there is told, and left alone."""
    with directory() as path:
        async with LocalContentStore(path / "foreign") as store:
            async with serve(f"unix://{path}/f.sock", [ContentService(store)], name="foreign", grace=1.0):
                plugin = ProxyPlugin(name="foreign", type="content", address=f"unix://{path}/f.sock")
                async with metadata(path, plugins=[plugin], settings=Settings(content="foreign")) as (
                    _,
                    registry,
                    records,
                    _,
                ):
                    with context.within(namespace="one"):
                        digest = await put(registry.content, b"data" * 500_000, ROOT)
                    spoiled = path / "foreign" / "blobs" / "sha256" / digest.hex
                    check = Check(records, registry)
                    before = [result async for result in check.check(Options()) if isinstance(result, Summary)]
                    await asyncio.to_thread(spoil, spoiled, b"DATA" * 500_000)
                    options = Options(repair=True, remove_orphans=True)
                    found = [result async for result in check.check(options) if isinstance(result, Finding)]
    assert [(summary.hashed, summary.hashed_bytes) for summary in before] == [(1, 2_000_000)]
    assert [(one.kind, one.done, one.settled) for one in found] == [
        ("damaged", "left alone: content back end foreign can't put it aside", False)
    ]


async def test_no_false_alarm_under_load(there: View) -> None:
    """Checks beside writers, snapshots, deletions and collections find nothing wrong."""
    stop = asyncio.Event()

    async def churn(name: str) -> None:
        count = 0
        with context.within(namespace=name):
            while not stop.is_set():
                count += 1
                digest = await put(there.content, f"{name} {count}".encode(), ROOT)
                await there.snapshotter.prepare(f"key {count}", labels=ROOT)
                await there.snapshotter.commit(f"name {count}", f"key {count}", ROOT)
                await there.content.delete(digest)
                await there.snapshotter.remove(f"name {count}")
                if count % 5 == 0:
                    await there.collector.run()

    async with asyncio.TaskGroup() as tasks:
        for name in ("one", "two", "three"):
            tasks.create_task(churn(name))
        try:
            for repair in (False, True, False, True):
                assert await kinds(there, repair=repair) == set()
        finally:
            stop.set()


def test_names() -> None:
    """Names are found among many, in any order of adding and asking."""
    names = Names()
    for number in range(1000):
        names.add(f"name {number}")
        assert f"name {number}" in names
    assert "name 1000" not in names
    assert len(names) == 1000


async def test_a_stack_of_orphans_goes_at_once(there: View) -> None:
    """Snapshots that stand on one another and that nothing records are removed by one repair."""
    below = ""
    for number in range(3):
        await there.trees.prepare(f"make {number}", below)
        below = f"layer {number}"
        await there.trees.commit(below, f"make {number}")
    findings, _, _ = await checked(there, repair=True, remove_orphans=True)
    assert [(found.id, found.settled) for found in findings] == [(f"layer {number}", True) for number in range(3)]
    assert await there.trees_there() == set()
