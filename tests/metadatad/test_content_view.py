"""Content per namespace: sharing, isolation, leases, and what a crash or a late deletion may not do."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from carina import context
from carina.content import ContentStore, Info
from carina.digest import Digest
from carina.errors import AlreadyExists, FailedPrecondition, NotFound
from carina.leases import Lease, Resource
from carina.namespaces import Namespace
from conformance.content_suite import get, put
from metadatad import blobs, leases
from metadatad.backends import Settings
from metadatad.records import Transaction
from support.content import directory
from support.views import View, content_backend, metadata, view

DATA = b"some bytes" * 1000
DIGEST = Digest.of(DATA)


@pytest.fixture
async def service() -> AsyncIterator[View]:
    with directory() as path:
        async with view(path) as service:
            yield service


@pytest.fixture
async def isolated() -> AsyncIterator[View]:
    with directory() as path:
        async with view(path, shared=False) as service:
            yield service


async def take(store: ContentStore, digest: Digest, *, size: int = 0, labels: dict[str, str] | None = None) -> int:
    """Commit a blob of which only the digest is known; how many bytes were there."""
    async with await store.writer("take", total=size, expected=digest) as writer:
        offset = writer.status.offset
        await writer.commit(size=size, expected=digest, labels=labels)
    return offset


async def test_namespaces_do_not_see_each_other(service: View) -> None:
    """A blob and its labels belong to the namespace that brought it."""
    with context.within(namespace="one"):
        await put(service.content, DATA, {"a": "1"})
    with context.within(namespace="two"):
        with pytest.raises(NotFound):
            await service.content.info(DIGEST)
        with pytest.raises(NotFound):
            await get(service.content, DIGEST)
        with pytest.raises(NotFound):
            await service.content.delete(DIGEST)
        with pytest.raises(NotFound):
            await service.content.open_blob(DIGEST)


async def test_shared_blob_need_not_be_sent(service: View) -> None:
    """With the digest alone a namespace gets what another one has, with labels of its own."""
    with context.within(namespace="one"):
        await put(service.content, DATA, {"a": "1"})
    with context.within(namespace="two"):
        assert await take(service.content, DIGEST, size=len(DATA), labels={"b": "2"}) == len(DATA)
        assert (await service.content.info(DIGEST)).labels == {"b": "2"}
        assert await get(service.content, DIGEST) == DATA
        with pytest.raises(AlreadyExists):
            await service.content.writer("again", expected=DIGEST)
    with context.within(namespace="one"):
        assert (await service.content.info(DIGEST)).labels == {"a": "1"}


async def test_shared_blob_of_another_size_is_not_taken(service: View) -> None:
    """Who expects another size sends the bytes, and the commit finds the lie."""
    with context.within(namespace="one"):
        await put(service.content, DATA)
    with context.within(namespace="two"):
        async with await service.content.writer("w", total=5, expected=DIGEST) as writer:
            assert writer.status.offset == 0
            await writer.write(b"12345")
            with pytest.raises(FailedPrecondition):
                await writer.commit(size=5, expected=DIGEST)


async def test_shared_ingest_keeps_the_blob(service: View) -> None:
    """While an ingest stands for a shared blob, the blob stays at the back end, and goes with the ingest."""
    with context.within(namespace="one"):
        await put(service.content, DATA)
    with context.within(namespace="two"):
        async with await service.content.writer("w", expected=DIGEST):
            with context.within(namespace="one"):
                await service.content.delete(DIGEST)
            await service.collector.run(sync=True)
            assert await service.stored() == {DIGEST}
        await service.content.abort("w")
    await service.collector.run(sync=True)
    assert await service.stored() == set()


async def test_more_is_written_to_a_shared_blob(service: View) -> None:
    """Whoever writes on gets an ingest of their own that begins with the blob's bytes; the blob stays as it is."""
    with context.within(namespace="one"):
        await put(service.content, DATA)
    with context.within(namespace="two"):
        async with await service.content.writer("w", expected=DIGEST) as writer:
            await writer.write(b"more")
            longer = await writer.commit(expected=Digest.of(DATA + b"more"))
        assert await get(service.content, longer) == DATA + b"more"
    with context.within(namespace="one"):
        assert await get(service.content, DIGEST) == DATA


async def test_ingest_that_became_another_blob_keeps_the_first_no_more(service: View) -> None:
    """A blob that every namespace has deleted meanwhile goes, although an ingest began with its bytes."""
    with context.within(namespace="one"):
        await put(service.content, DATA)
    with context.within(namespace="two"):
        async with await service.content.writer("w", expected=DIGEST) as writer:
            with context.within(namespace="one"):
                await service.content.delete(DIGEST)
            await writer.write(b"more")
            longer = await writer.commit(expected=Digest.of(DATA + b"more"), labels={"containerd.io/gc.root": "x"})
    await service.collector.run(sync=True)
    assert await service.stored() == {longer}


async def test_ingest_whose_record_went_is_not_committed(service: View) -> None:
    """An ingest that a collection has taken, with its lease, becomes no blob that nobody knows of."""
    with context.within(namespace="one"):
        lease = await service.leases.create(Lease(id="l"))

    def collect(transaction: Transaction) -> None:
        leases.discard(transaction.connection, "one", "l")
        blobs.discard_ingest(transaction.connection, "one", "w")

    with context.within(namespace="one", lease=lease.id):
        async with await service.content.writer("w") as writer:
            await writer.write(DATA)
            await service.records.write(collect)
            with pytest.raises(NotFound):
                await writer.commit(expected=DIGEST)
    await service.collector.run(sync=True)
    assert (await service.stored(), await service.blobs.statuses()) == (set(), [])


async def test_isolated_namespaces_bring_the_bytes(isolated: View) -> None:
    """Knowing a digest is not enough; the bytes are stored once all the same."""
    with context.within(namespace="one"):
        await put(isolated.content, DATA)
    with context.within(namespace="two"):
        async with await isolated.content.writer("w", total=len(DATA), expected=DIGEST) as writer:
            assert writer.status.offset == 0
            with pytest.raises(FailedPrecondition):
                await writer.commit(expected=DIGEST)
        assert await put(isolated.content, DATA) == DIGEST
    assert await isolated.stored() == {DIGEST}


async def test_shareable_namespace(isolated: View) -> None:
    """A namespace can offer its content to all others."""
    await isolated.namespaces.create(Namespace(name="one", labels={"containerd.io/namespace.shareable": "true"}))
    with context.within(namespace="one"):
        await put(isolated.content, DATA)
    with context.within(namespace="two"):
        assert await take(isolated.content, DIGEST) == len(DATA)


async def test_deleting_is_for_one_namespace(service: View) -> None:
    """The back end keeps a blob as long as any namespace has it, and no longer."""
    for namespace in ("one", "two"):
        with context.within(namespace=namespace):
            await put(service.content, DATA, {"containerd.io/gc.root": "x"})
    with context.within(namespace="one"):
        await service.content.delete(DIGEST)
    await service.collector.run(sync=True)
    assert await service.stored() == {DIGEST}
    with context.within(namespace="two"):
        assert await get(service.content, DIGEST) == DATA
        await service.content.delete(DIGEST)
    await service.collector.run(sync=True)
    assert await service.stored() == set()
    assert await service.rows("tombstones") == 0


async def test_lease_holds_ingest_and_blob(service: View) -> None:
    """What is written under a lease stays until the lease goes, then it goes with it."""
    with context.within(namespace="one"):
        lease = await service.leases.create(Lease(id="l"))
    with context.within(namespace="one", lease=lease.id):
        async with await service.content.writer("half") as writer:
            await writer.write(b"half")
        await put(service.content, DATA)
    with context.within(namespace="one"):
        held = set(await service.leases.resources("l"))
        assert held == {Resource(type="ingests", id="half"), Resource(type="content", id=DIGEST)}
        await service.collector.run(sync=True)
        assert [status.ref for status in await service.content.statuses()] == ["half"]
        assert await service.stored() == {DIGEST}
        await service.leases.delete("l", sync=True)
        assert await service.content.statuses() == []
    assert await service.stored() == set()
    assert await service.blobs.statuses() == []


async def test_lease_that_is_gone_fails_the_write(service: View) -> None:
    """Under a lease that does not exist nothing is begun."""
    with context.within(namespace="one", lease="nowhere"):
        with pytest.raises(NotFound):
            await service.content.writer("w")
    assert await service.blobs.statuses() == []


async def test_ingest_without_lease_expires(service: View) -> None:
    """An ingest that no lease holds lasts a day, then the collector removes it, with its bytes."""
    with context.within(namespace="one"):
        async with await service.content.writer("old") as writer:
            await writer.write(b"old")
        await service.collector.run(sync=True)
        assert len(await service.content.statuses()) == 1
        past = (datetime.now(UTC) - timedelta(hours=1)).timestamp() * 1e6
        await service.records.write(
            lambda transaction: transaction.connection.execute("UPDATE ingests SET expires_at = ?", (int(past),))
        )
        await service.collector.run(sync=True)
        assert await service.content.statuses() == []
    assert await service.blobs.statuses() == []


async def test_labels_keep_what_they_refer_to(service: View) -> None:
    """A blob lives as long as a label of something alive names it."""
    other = Digest.of(b"other")
    with context.within(namespace="one"):
        await put(service.content, b"other")
        await put(service.content, DATA, {"containerd.io/gc.root": "x", "containerd.io/gc.ref.content.0": other})
        await service.collector.run(sync=True)
        assert await service.stored() == {DIGEST, other}
        await service.content.update(Info(digest=DIGEST), ["labels.containerd.io/gc.ref.content.0"])
        await service.collector.run(sync=True)
        assert await service.stored() == {DIGEST}
        with pytest.raises(NotFound):
            await service.content.info(other)
        with pytest.raises(NotFound):
            await get(service.content, other)


async def test_committed_again_while_it_is_to_be_deleted(service: View) -> None:
    """A blob that was deleted and comes back before the disk was cleaned stays."""
    with context.within(namespace="one"):
        for _ in range(20):
            await put(service.content, DATA, {"containerd.io/gc.root": "x"})
            await service.content.delete(DIGEST)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(service.collector.run(sync=True))
                tasks.create_task(put(service.content, DATA, {"containerd.io/gc.root": "x"}))
            assert await get(service.content, DIGEST) == DATA
            assert await service.stored() == {DIGEST}
            await service.content.delete(DIGEST)


async def test_crash_after_the_back_ends_commit(service: View) -> None:
    """A blob that the back end has and no record tells of is found through its ingest, and removed with that."""
    with context.within(namespace="one"):
        async with await service.content.writer("w", expected=DIGEST) as writer:
            await writer.write(DATA)
    backend_ref = (await service.blobs.statuses())[0].ref
    async with await service.blobs.writer(backend_ref) as behind:
        await behind.commit()
    assert await service.stored() == {DIGEST}
    with context.within(namespace="one"):
        await service.content.abort("w")
    await service.collector.run(sync=True)
    assert await service.stored() == set()


async def test_aborted_ingest_takes_no_blob_along(service: View) -> None:
    """Aborting an ingest removes its bytes, and nothing else that has the digest it expected."""
    with context.within(namespace="one"):
        async with await service.content.writer("w", expected=DIGEST) as writer:
            await writer.write(DATA[:10])
        await put(service.blobs, DATA)
        await service.content.abort("w")
    await service.collector.run(sync=True)
    assert await service.stored() == {DIGEST}
    assert await service.blobs.statuses() == []


async def test_unknown_objects_are_never_swept(service: View) -> None:
    """What we never recorded stays where it is."""
    await put(service.blobs, b"somebody else's")
    async with await service.blobs.writer("theirs") as writer:
        await writer.write(b"x")
    await service.trees.prepare("theirs")
    await service.collector.run(sync=True)

    assert len(await service.stored()) == 1
    assert len(await service.blobs.statuses()) == 1
    assert await service.trees_there() == {"theirs"}


async def test_records_are_answered_without_the_back_end() -> None:
    """Info, lists, labels, deletion and bytes of small blobs in memory need nobody else."""
    with directory() as path:
        async with metadata(path, settings=Settings(answer_seconds=5)) as (_, registry, records, _):
            store = registry.content
            async with content_backend(path):
                with context.within(namespace="one"):
                    await put(store, DATA)
                    assert await get(store, DIGEST) == DATA
            with context.within(namespace="one"):
                assert (await store.info(DIGEST)).size == len(DATA)
                assert [info.digest async for info in store.walk()] == [DIGEST]
                assert (await store.update(Info(digest=DIGEST, labels={"a": "b"}))).labels == {"a": "b"}
                assert await get(store, DIGEST) == DATA
                await store.delete(DIGEST)
            assert await records.read(lambda c: c.execute("SELECT key FROM tombstones").fetchall()) == [(DIGEST,)]


async def test_aborted_ingest_of_a_shared_blob_can_not_be_committed(service: View) -> None:
    """Nothing keeps the blob once the ingest is aborted: a record would name bytes that are gone."""
    with context.within(namespace="one"):
        await put(service.content, DATA)
    with context.within(namespace="two"):
        writer = await service.content.writer("take", expected=DIGEST)
        await service.content.abort("take")
    with context.within(namespace="one"):
        await service.content.delete(DIGEST)
        await service.collector.run(sync=True)
    assert await service.stored() == set()
    with context.within(namespace="two"):
        with pytest.raises(NotFound):
            await writer.commit(expected=DIGEST)
        with pytest.raises(NotFound):
            await service.content.info(DIGEST)


async def test_bytes_of_an_ingest_that_another_namespace_finished_first_are_removed(service: View) -> None:
    """Who comes back to a half-written ingest of what another namespace has now leaves nothing in the back end."""
    root = {"containerd.io/gc.root": "x"}
    with context.within(namespace="two"):
        async with await service.content.writer("take", total=len(DATA), expected=DIGEST) as writer:
            await writer.write(DATA[:10])
    with context.within(namespace="one"):
        await put(service.content, DATA, root)
    with context.within(namespace="two"):
        assert await take(service.content, DIGEST, size=len(DATA), labels=root) == len(DATA)
        await service.collector.run(sync=True)
        assert await get(service.content, DIGEST) == DATA
    assert await service.blobs.statuses() == []


async def test_an_ingest_that_is_begun_under_an_old_name_is_removed(service: View) -> None:
    """Who was told the back end's name of an ingest before another took it over may begin it later: it is found."""
    root = {"containerd.io/gc.root": "x"}
    with context.within(namespace="two"):
        async with await service.content.writer("take", total=len(DATA), expected=DIGEST) as writer:
            await writer.write(DATA[:10])
        (left,) = await service.blobs.statuses()
    with context.within(namespace="one"):
        await put(service.content, DATA, root)
    with context.within(namespace="two"):
        await take(service.content, DIGEST, size=len(DATA), labels=root)
    await service.collector.run(sync=True)
    async with await service.blobs.writer(left.ref) as late:
        await late.write(DATA[:10])
    async with asyncio.timeout(30):
        while await service.blobs.statuses():
            await asyncio.sleep(0.1)
            await service.collector.run(sync=True)


async def test_an_ingest_that_was_written_over_a_shared_blob_is_removed(service: View) -> None:
    """Who writes to an ingest that began with another namespace's blob, and dies, leaves nothing in the back end."""
    root = {"containerd.io/gc.root": "x"}
    with context.within(namespace="one"):
        await put(service.content, DATA, root)
    with context.within(namespace="two"):
        writer = await service.content.writer("take", expected=DIGEST)
        await writer.truncate(0)
        await writer.close()
        assert len(await service.blobs.statuses()) == 1
        await take(service.content, DIGEST, size=len(DATA), labels=root)
    await service.collector.run(sync=True)
    assert await service.blobs.statuses() == []


async def test_an_ingest_that_is_begun_anew_after_its_commit_is_known(service: View) -> None:
    """Of two writers of a ref the later one may begin it at the back end after the other's commit: it is looked for."""
    with context.within(namespace="one"):
        async with await service.content.writer("ref", expected=DIGEST) as first:
            await first.write(DATA)
        async with await service.content.writer("ref", expected=DIGEST) as again:
            await again.commit(expected=DIGEST, labels={"containerd.io/gc.root": "x"})
    query = "SELECT key FROM tombstones WHERE type = 'ingest' AND due > 0 AND until > due"
    waiting = await service.records.read(lambda connection: connection.execute(query).fetchall())
    assert waiting == [("one/1/ref",)]
