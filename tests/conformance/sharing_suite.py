"""What a content store with namespaces promises: who shares what, and what leases hold."""

from dataclasses import dataclass

import pytest

from carina import context
from carina.content import ContentStore
from carina.digest import Digest
from carina.errors import AlreadyExists, FailedPrecondition, NotFound
from carina.leases import Lease, LeaseManager, Resource
from carina.namespaces import Namespace, NamespaceStore
from conformance.content_suite import fresh, get, put


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A content store of which nobody else uses the namespaces `one` and `two`, with what goes with it."""

    content: ContentStore
    leases: LeaseManager
    namespaces: NamespaceStore
    one: str
    two: str


class NamespacedSuite:
    """What holds under both policies."""

    @pytest.fixture
    def store(self) -> Shared:
        raise NotImplementedError

    async def test_namespaces_are_apart(self, store: Shared) -> None:
        """A blob, its labels and its ingests are of one namespace."""
        data = fresh()
        with context.within(namespace=store.one):
            digest = await put(store.content, data, {"a": "1"})
            async with await store.content.writer("open") as writer:
                await writer.write(b"x")
        with context.within(namespace=store.two):
            assert [info async for info in store.content.walk()] == []
            assert await store.content.statuses() == []
            for attempt in (
                store.content.info(digest),
                store.content.delete(digest),
                store.content.status("open"),
                store.content.abort("open"),
            ):
                with pytest.raises(NotFound):
                    await attempt
            with pytest.raises(NotFound):
                await get(store.content, digest)

    async def test_namespace_is_required(self, store: Shared) -> None:
        """Without a namespace there is no content."""
        with context.use(context.Call()):
            for attempt in (store.content.info(Digest.of(b"")), store.content.status("x"), store.content.writer("x")):
                with pytest.raises(FailedPrecondition, match="namespace"):
                    await attempt

    async def test_labels_are_apart(self, store: Shared) -> None:
        """Each namespace has labels of its own on a blob that both have."""
        data = fresh()
        for name in (store.one, store.two):
            with context.within(namespace=name):
                await put(store.content, data, {"a": name})
        for name in (store.one, store.two):
            with context.within(namespace=name):
                assert (await store.content.info(Digest.of(data))).labels == {"a": name}

    async def test_shareable_namespace(self, store: Shared) -> None:
        """The label `containerd.io/namespace.shareable` offers a namespace's content to all others."""
        with context.within(namespace=store.one):  # containerd 1.6 publishes the event in the call's namespace
            labels = {"containerd.io/namespace.shareable": "true"}
            await store.namespaces.create(Namespace(name=store.one, labels=labels))
        await self.taken(store)

    async def taken(self, store: Shared) -> None:
        """The other namespace takes a blob by its digest alone."""
        data = fresh()
        with context.within(namespace=store.one):
            digest = await put(store.content, data)
        with context.within(namespace=store.two):
            async with await store.content.writer("take", total=len(data), expected=digest) as writer:
                assert (writer.status.offset, writer.status.total) == (len(data), len(data))
                assert await writer.digest() == digest
                assert await writer.commit(size=len(data), expected=digest) == digest
        for name in (store.one, store.two):
            with context.within(namespace=name):
                assert await get(store.content, digest) == data

    async def test_lease_holds_what_is_written(self, store: Shared) -> None:
        """The lease of the call holds an ingest while that is open, and then the blob."""
        data = fresh()
        with context.within(namespace=store.one):
            await store.leases.create(Lease(id="l"))
            with context.within(lease="l"):
                async with await store.content.writer("leased") as writer:
                    assert await store.leases.resources("l") == [Resource(type="ingests", id="leased")]
                    await writer.write(data)
                    await writer.commit()
            assert await store.leases.resources("l") == [Resource(type="content", id=Digest.of(data))]

    async def test_lease_holds_what_is_there(self, store: Shared) -> None:
        """The lease of a call that is told that a blob is there holds it, and no ingest."""
        data = fresh()
        with context.within(namespace=store.one):
            digest = await put(store.content, data)
            await store.leases.create(Lease(id="l"))
            with context.within(lease="l"), pytest.raises(AlreadyExists):
                await store.content.writer("again", total=len(data), expected=digest)
            assert await store.leases.resources("l") == [Resource(type="content", id=digest)]

    async def test_lease_lets_go_of_what_is_removed(self, store: Shared) -> None:
        """An aborted ingest and a deleted blob are no longer held by the lease of the call."""
        with context.within(namespace=store.one):
            await store.leases.create(Lease(id="l"))
            with context.within(lease="l"):
                digest = await put(store.content, fresh())
                async with await store.content.writer("leased"):
                    pass
                await store.content.abort("leased")
                await store.content.delete(digest)
            assert await store.leases.resources("l") == []

    @pytest.mark.parametrize("other", [False, True])
    async def test_lease_must_be_there(self, store: Shared, other: bool) -> None:
        """A call under a lease that does not exist, or is another namespace's, opens no writer."""
        if other:
            with context.within(namespace=store.two):
                await store.leases.create(Lease(id="gone"))
        with context.within(namespace=store.one, lease="gone"):
            with pytest.raises(NotFound, match="lease"):
                await store.content.writer("ref")
            assert await store.content.statuses() == []


class SharedSuite(NamespacedSuite):
    """The policy `shared`."""

    async def test_digest_is_enough(self, store: Shared) -> None:
        """Who knows the digest of a blob that any namespace has need not bring its bytes."""
        await self.taken(store)

    async def test_written_on(self, store: Shared) -> None:
        """Who writes on begins with the other namespace's bytes, and leaves those as they are."""
        data = fresh()
        with context.within(namespace=store.one):
            digest = await put(store.content, data)
        with context.within(namespace=store.two):
            async with await store.content.writer("append", total=len(data), expected=digest) as writer:
                await writer.write(b"more")
                longer = await writer.commit(size=len(data) + 4, expected=Digest.of(data + b"more"))
            assert await get(store.content, longer) == data + b"more"
            with pytest.raises(NotFound):
                await store.content.info(digest)
        with context.within(namespace=store.one):
            assert await get(store.content, digest) == data

    async def test_other_size_is_not_shared(self, store: Shared) -> None:
        """Who expects another size than the blob has begins with nothing."""
        with context.within(namespace=store.one):
            digest = await put(store.content, fresh())
        with context.within(namespace=store.two):
            async with await store.content.writer("other", total=7, expected=digest) as writer:
                assert writer.status.offset == 0


class IsolatedSuite(NamespacedSuite):
    """The policy `isolated`."""

    async def test_every_namespace_brings_the_bytes(self, store: Shared) -> None:
        """Who knows only the digest begins with nothing, and can't commit that."""
        data = fresh()
        with context.within(namespace=store.one):
            digest = await put(store.content, data)
        with context.within(namespace=store.two):
            async with await store.content.writer("isolated", total=len(data), expected=digest) as writer:
                assert writer.status.offset == 0
                assert await writer.digest() == Digest.of(b"")
                with pytest.raises(FailedPrecondition):
                    await writer.commit(size=len(data), expected=digest)
            assert await put(store.content, data) == digest
            assert await get(store.content, digest) == data
