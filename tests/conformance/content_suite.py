"""What every content store promises. A test module subclasses `ContentSuite` and overrides the fixture `store`."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from carina.content import ContentStore, DescriptorLane, Info, Writer
from carina.digest import Digest
from carina.errors import (
    AlreadyExists,
    CarinaError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Unavailable,
)

DATA = bytes(range(256)) * 64
ABSENT = Digest.of(b"never stored")


def fresh(size: int = 5000) -> bytes:
    """Bytes that no other test stores."""
    return os.urandom(size)


async def put(store: ContentStore, data: bytes, labels: dict[str, str] | None = None) -> Digest:
    digest = Digest.of(data)
    async with await store.writer(f"put-{digest}", total=len(data), expected=digest) as writer:
        # Where blobs are shared between namespaces, a blob of another one may be there already.
        await writer.write(data[writer.status.offset :])
        assert await writer.commit(size=len(data), expected=digest, labels=labels) == digest
    return digest


async def get(store: ContentStore, digest: Digest) -> bytes:
    async with await store.reader(digest) as reader:
        return await reader.read(0, reader.size)


async def blobs(store: ContentStore, *filters: str) -> dict[Digest, Info]:
    return {info.digest: info async for info in store.walk(filters)}


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.01)


class ContentSuite:
    """Override `store`, and say where an implementation is known to promise less."""

    keeps_labels = True
    """Whether labels given at commit are kept."""
    stores_sha512 = True
    """Whether algorithms other than sha256 are there."""
    restarts_on_other_total = True
    filters_sizes = True
    shows_expected = True
    """Whether a status says which digest is expected."""

    @pytest.fixture
    def store(self) -> ContentStore:
        raise NotImplementedError

    # Writing

    async def test_written_is_read(self, store: ContentStore) -> None:
        """What was committed is found under its digest, whole, with size and time."""
        data = fresh()
        digest = await put(store, data)
        info = await store.info(digest)
        assert (info.digest, info.size) == (digest, len(data))
        assert info.created_at is not None
        assert abs(info.created_at - datetime.now(UTC)) < timedelta(minutes=1)
        assert await get(store, digest) == data

    async def test_announced_or_not(self, store: ContentStore) -> None:
        """Size and digest may be announced with the writer, at commit, or never, with many writers at once."""
        pieces = [fresh(256) for _ in range(4)]
        announced: list[dict[str, Any]] = [
            {},
            {"total": 256},
            {"expected": Digest.of(pieces[2])},
            {"total": 256, "expected": Digest.of(pieces[3])},
        ]
        async with contextlib.AsyncExitStack() as stack:
            writers = [
                await stack.enter_async_context(await store.writer(f"announced-{number}", **announcement))
                for number, announcement in enumerate(announced)
            ]
            for writer, data in zip(writers, pieces, strict=True):
                for start in range(0, 256, 32):
                    await writer.write(data[start : start + 32])
            for writer, data in zip(writers, pieces, strict=True):
                assert await writer.commit(labels={"a": "1"}) == Digest.of(data)
        for data in pieces:
            info = await store.info(Digest.of(data))
            assert (info.size, info.labels) == (256, {"a": "1"} if self.keeps_labels else {})

    async def test_large_write(self, store: ContentStore) -> None:
        """A write larger than any message arrives whole."""
        data = fresh(5 * 1024 * 1024 + 17)
        digest = await put(store, data)
        assert await get(store, digest) == data

    async def test_empty_blob(self, store: ContentStore) -> None:
        """The blob of no bytes is a blob."""
        digest = Digest.of(b"")
        async with await store.writer("empty") as writer:
            assert await writer.commit(expected=digest) == digest
        assert (await store.info(digest)).size == 0
        assert await get(store, digest) == b""

    async def test_status_of_writer(self, store: ContentStore) -> None:
        """A writer knows its ref and where it is, and so does the store."""
        async with await store.writer("status", total=len(DATA)) as writer:
            assert (writer.status.ref, writer.status.offset, writer.status.total) == ("status", 0, len(DATA))
            await writer.write(DATA[:100])
            assert writer.status.offset == 100
            assert await writer.digest() == Digest.of(DATA[:100])
            status = await store.status("status")
            assert (status.ref, status.offset, status.total) == ("status", 100, len(DATA))
            assert status.started_at is not None
            assert status.updated_at is not None

    async def test_progress_is_told(self, store: ContentStore) -> None:
        """After each write offset, digest and time of the last write are those of the bytes so far."""
        data = fresh(256)
        async with await store.writer("progress", total=256) as writer:
            assert await writer.digest() == Digest.of(b"")
            earlier = await store.status("progress")
            for start, end in ((0, 64), (64, 192), (192, 256)):
                await asyncio.sleep(0.01)
                await writer.write(data[start:end])
                status = await store.status("progress")
                assert (status.offset, status.total) == (end, 256)
                assert status.started_at == earlier.started_at
                assert status.updated_at is not None
                assert earlier.updated_at is not None
                assert status.updated_at > earlier.updated_at
                assert await writer.digest() == Digest.of(data[:end])
                earlier = status

    async def test_status_shows_expectation(self, store: ContentStore) -> None:
        """The digest that was announced is in the status."""
        if not self.shows_expected:
            pytest.skip("this implementation forgets it")
        digest = Digest.of(fresh())
        async with await store.writer("expectation", expected=digest):
            assert (await store.status("expectation")).expected == digest

    async def test_empty_ref_is_refused(self, store: ContentStore) -> None:
        """An ingest has a name."""
        with pytest.raises(InvalidArgument):
            await store.writer("")

    @pytest.mark.parametrize("ref", ["../../etc/passwd", "a/b/../c", "layer sha256:0 ü", "x" * 1000])
    async def test_any_ref(self, store: ContentStore, ref: str) -> None:
        """A ref is any text, and never a path."""
        data = fresh()
        async with await store.writer(ref) as writer:
            await writer.write(data)
            assert (await store.status(ref)).ref == ref
            assert await writer.commit() == Digest.of(data)

    async def test_sha512(self, store: ContentStore) -> None:
        """A blob is stored by the algorithm of the digest that is expected of it."""
        if not self.stores_sha512:
            pytest.skip("this implementation has sha256 only")
        data = fresh()
        for algorithm in ("sha384", "sha512"):
            digest = Digest.of(data, algorithm)
            async with await store.writer(f"ref-{algorithm}", expected=digest) as writer:
                await writer.write(data)
                assert await writer.commit(expected=digest) == digest
            assert await get(store, digest) == data

    async def test_sha512_only_at_commit(self, store: ContentStore) -> None:
        """The algorithm may be named as late as at commit."""
        if not self.stores_sha512:
            pytest.skip("this implementation has sha256 only")
        data = fresh()
        digest = Digest.of(data, "sha512")
        async with await store.writer("late") as writer:
            await writer.write(data)
            assert await writer.commit(expected=digest) == digest
        assert (await store.info(digest)).size == len(data)

    # Resuming

    async def test_resumed(self, store: ContentStore) -> None:
        """What was written before a close is still there, and the next writer goes on behind it."""
        data = fresh()
        async with await store.writer("resumed", total=len(data)) as writer:
            await writer.write(data[:1000])
        assert (await store.status("resumed")).offset == 1000
        async with await store.writer("resumed", total=len(data)) as writer:
            assert writer.status.offset == 1000
            assert await writer.digest() == Digest.of(data[:1000])
            await writer.write(data[1000:])
            assert await writer.commit(size=len(data), expected=Digest.of(data)) == Digest.of(data)
        assert await get(store, Digest.of(data)) == data
        with pytest.raises(NotFound):
            await store.status("resumed")

    @pytest.mark.parametrize("how", ["append", "truncate"])
    @pytest.mark.parametrize("size", [500, 50_000])
    async def test_resumed_anywhere(self, store: ContentStore, size: int, how: str) -> None:
        """Wherever a writer was closed, the next one goes on from there or begins again."""
        for share in (0.0, 0.1, 0.5, 0.9, 1.0):
            data, ref = fresh(size), f"resumed-{share}"
            cut = int(size * share)
            async with await store.writer(ref, total=size, expected=Digest.of(data)) as writer:
                await writer.write(data[:cut])
            async with await store.writer(ref, total=size, expected=Digest.of(data)) as writer:
                assert writer.status.offset == cut
                if how == "truncate":
                    await writer.truncate(0)
                await writer.write(data[writer.status.offset :])
                await writer.commit(size=size, expected=Digest.of(data))
            assert await get(store, Digest.of(data)) == data

    async def test_other_total_starts_over(self, store: ContentStore) -> None:
        """An ingest opened with another total is another ingest."""
        if not self.restarts_on_other_total:
            pytest.skip("this implementation keeps the first total")
        async with await store.writer("total", total=10) as writer:
            await writer.write(b"12345")
        async with await store.writer("total", total=20) as writer:
            assert (writer.status.offset, writer.status.total) == (0, 20)

    async def test_truncated_to_nothing(self, store: ContentStore) -> None:
        """After truncation to 0, only what is written from then on counts."""
        data = fresh()
        async with await store.writer("truncated") as writer:
            await writer.write(b"wrong start")
            await writer.truncate(0)
            assert writer.status.offset == 0
            await writer.write(data)
            assert await writer.commit(size=len(data)) == Digest.of(data)

    async def test_truncation_beyond_the_end(self, store: ContentStore) -> None:
        """An ingest can't be cut where it is not."""
        async with await store.writer("beyond") as writer:
            await writer.write(b"12345")
            with pytest.raises(OutOfRange):
                await writer.truncate(6)

    # Committing

    async def test_second_writer_of_a_blob(self, store: ContentStore) -> None:
        """A blob that is there needs no writer."""
        digest = await put(store, fresh())
        with pytest.raises(AlreadyExists, match=digest):
            await store.writer("again", expected=digest)
        with pytest.raises(NotFound):
            await store.status("again")

    async def test_second_commit_of_a_blob(self, store: ContentStore) -> None:
        """Committing what is there already says so, and the ingest is gone."""
        data = fresh()
        digest = await put(store, data)
        async with await store.writer("again") as writer:
            await writer.write(data)
            with pytest.raises(AlreadyExists, match=digest):
                await writer.commit()
        with pytest.raises(NotFound):
            await store.status("again")
        assert await get(store, digest) == data

    async def test_two_writers_of_the_same(self, store: ContentStore) -> None:
        """Of two writers of the same bytes one commits and the other one learns that."""
        data = fresh()

        async def write(ref: str) -> str:
            async with await store.writer(ref) as writer:
                await writer.write(data)
                try:
                    await writer.commit()
                except AlreadyExists:
                    return "exists"
                return "committed"

        assert sorted(await asyncio.gather(write("one"), write("two"))) == ["committed", "exists"]
        assert await get(store, Digest.of(data)) == data

    async def test_wrong_size(self, store: ContentStore) -> None:
        """A commit of another size fails; the ingest stays, to be completed."""
        data = fresh()
        async with await store.writer("size") as writer:
            await writer.write(data[:-1])
            with pytest.raises(FailedPrecondition):
                await writer.commit(size=len(data))
        async with await store.writer("size") as writer:
            assert writer.status.offset == len(data) - 1
            await writer.write(data[-1:])
            assert await writer.commit(size=len(data)) == Digest.of(data)

    async def test_wrong_digest(self, store: ContentStore) -> None:
        """A commit of other bytes than expected fails with both digests, and there is no blob."""
        data = fresh()
        wrong = Digest.of(b"something else")
        async with await store.writer("digest") as writer:
            await writer.write(data)
            with pytest.raises(FailedPrecondition) as raised:
                await writer.commit(size=len(data), expected=wrong)
        assert wrong in str(raised.value)
        assert Digest.of(data) in str(raised.value)
        for digest in (wrong, Digest.of(data)):
            with pytest.raises(NotFound):
                await store.info(digest)

    async def test_ref_after_every_end(self, store: ContentStore) -> None:
        """A ref is held by its writer until that ends; then it is new after an existing blob, and resumed otherwise."""
        data = fresh(256)
        digest, ref = await put(store, data), "every-end"

        @contextlib.asynccontextmanager
        async def writing(offset: int) -> AsyncIterator[Writer]:
            async with await store.writer(ref) as writer:
                assert writer.status.offset == offset
                yield writer

        for expected in (digest, None):
            async with writing(0) as writer:
                await writer.write(data)
                with pytest.raises(AlreadyExists):
                    await writer.commit(size=256, expected=expected)
        more = data + b"more"
        async with writing(0) as writer:
            await writer.write(more)
            with pytest.raises(FailedPrecondition):
                await writer.commit(size=260, expected=ABSENT)
        async with writing(260) as writer:
            with pytest.raises(FailedPrecondition):
                await writer.commit(size=256)
        async with writing(260) as writer:
            assert await writer.commit(size=260) == Digest.of(more)
        async with writing(0):
            with pytest.raises(Unavailable):
                await store.writer(ref)
        await store.abort(ref)

    async def test_writer_ends_with_its_commit(self, store: ContentStore) -> None:
        """After commit or close nothing more is written; closing again is nothing."""
        data = fresh()
        async with await store.writer("done") as writer:
            await writer.write(data)
            await writer.commit()
            with pytest.raises(FailedPrecondition):
                await writer.write(b"more")
            with pytest.raises(FailedPrecondition):
                await writer.commit()
            await writer.close()
        assert await get(store, Digest.of(data)) == data

    async def test_cancelled_commit(self, store: ContentStore) -> None:
        """A commit that is cancelled has happened or has not: the ref is free, and the same commit works again."""
        for steps in (0, 1, 2, 3, 5, 8):
            data = fresh()
            writer = await store.writer(f"cancelled-{steps}")
            await writer.write(data)
            commit = asyncio.create_task(_commit(writer), name="commit")
            for _ in range(steps):
                await asyncio.sleep(0)
            commit.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await commit
            with contextlib.suppress(CarinaError):
                await writer.close()
            await until(lambda data=data, ref=f"cancelled-{steps}": self._settles(store, ref, data))  # type: ignore[misc]
            assert await get(store, Digest.of(data)) == data

    async def _settles(self, store: ContentStore, ref: str, data: bytes) -> bool:
        try:
            async with await store.writer(ref, expected=Digest.of(data)) as writer:
                if writer.status.offset != len(data):
                    await writer.truncate(0)
                    await writer.write(data)
                await writer.commit(expected=Digest.of(data))
        except Unavailable:
            return False
        except AlreadyExists:
            pass
        return True

    # Refs

    async def test_one_writer_of_a_ref(self, store: ContentStore) -> None:
        """A second writer of a ref is refused, and welcome once the first one is closed."""
        async with await store.writer("locked") as writer:
            await writer.write(b"first")
            with pytest.raises(Unavailable, match="locked"):
                await store.writer("locked")
        async with await store.writer("locked") as writer:
            assert writer.status.offset == 5

    async def test_statuses(self, store: ContentStore) -> None:
        """Ingests are listed while they are there, and filtered by ref."""
        for ref in ("listed-1", "listed-2"):
            async with await store.writer(ref) as writer:
                await writer.write(ref.encode())
        found = {status.ref: status.offset for status in await store.statuses()}
        assert found == {"listed-1": 8, "listed-2": 8}
        assert [status.ref for status in await store.statuses(['ref=="listed-2"'])] == ["listed-2"]
        await store.abort("listed-1")
        assert [status.ref for status in await store.statuses()] == ["listed-2"]

    async def test_abort(self, store: ContentStore) -> None:
        """An aborted ingest is gone, and one that is not there can't be aborted."""
        async with await store.writer("aborted") as writer:
            await writer.write(DATA)
        await store.abort("aborted")
        with pytest.raises(NotFound):
            await store.status("aborted")
        with pytest.raises(NotFound):
            await store.abort("aborted")
        async with await store.writer("aborted") as writer:
            assert writer.status.offset == 0

    # Blobs

    async def test_absent_blob(self, store: ContentStore) -> None:
        """Everything about a blob that is not there is NotFound."""
        for attempt in (
            store.info(ABSENT),
            store.reader(ABSENT),
            store.delete(ABSENT),
            store.update(Info(digest=ABSENT, labels={"a": "b"}), ["labels"]),
        ):
            with pytest.raises(NotFound):
                await attempt

    @pytest.mark.parametrize(
        ("offset", "length"), [(0, 1), (0, 16384), (100, 200), (16383, 1), (16380, 100), (16384, 1), (20000, 1), (5, 0)]
    )
    async def test_ranges(self, store: ContentStore, offset: int, length: int) -> None:
        """A read gives the bytes of its range, fewer at the end, none behind it."""
        digest = Digest.of(DATA)
        with contextlib.suppress(AlreadyExists):
            await put(store, DATA)
        async with await store.reader(digest) as reader:
            assert reader.size == len(DATA)
            assert await reader.read(offset, length) == DATA[offset : offset + length]

    async def test_readers_at_once(self, store: ContentStore) -> None:
        """Many readers of one blob do not disturb each other."""
        data = fresh(300_000)
        digest = await put(store, data)

        async def read(start: int) -> bool:
            async with await store.reader(digest) as reader:
                return await reader.read(start, 50_000) == data[start : start + 50_000]

        assert all(await asyncio.gather(*(read(start) for start in range(0, 300_000, 20_000))))

    async def test_deleted(self, store: ContentStore) -> None:
        """A deleted blob is gone at once, and can be stored again."""
        data = fresh()
        digest = await put(store, data)
        await get(store, digest)
        await store.delete(digest)
        for attempt in (store.info(digest), store.reader(digest), store.delete(digest)):
            with pytest.raises(NotFound):
                await attempt
        assert await put(store, data) == digest
        assert await get(store, digest) == data

    async def test_walk(self, store: ContentStore) -> None:
        """Every blob is walked once, with size and labels; filters select."""
        made = {await put(store, fresh(100 + i), {"number": str(i)}): 100 + i for i in range(5)}
        found = await blobs(store)
        assert {digest: found[digest].size for digest in made} == made
        one = next(iter(made))
        assert list(await blobs(store, f'digest=="{one}"')) == [one]
        if self.keeps_labels:
            assert list(await blobs(store, "labels.number==0")) == [one]
            assert set(await blobs(store, "labels.number==0", "labels.number==3")) < set(made)
            assert set(await blobs(store, "labels.number")) == set(made)

    async def test_filter_by_size(self, store: ContentStore) -> None:
        """The size of a blob is a field, too."""
        if not self.filters_sizes:
            pytest.skip("this implementation has no such field")
        digests = [await put(store, fresh(size)) for size in (311, 312)]
        assert list(await blobs(store, "size==312")) == digests[1:]
        assert list(await blobs(store, "size")) == sorted(digests)

    async def test_bad_filter(self, store: ContentStore) -> None:
        """A filter that is none is refused."""
        for filters in (["digest=x"], ["labels.a", "labels."]):
            with pytest.raises(InvalidArgument):
                await blobs(store, *filters)
            with pytest.raises(InvalidArgument):
                await store.statuses(filters)

    # Labels

    async def test_labels_at_commit(self, store: ContentStore) -> None:
        """Labels given at commit are the blob's."""
        if not self.keeps_labels:
            pytest.skip("this implementation forgets them")
        digest = await put(store, fresh(), {"a": "1", "containerd.io/gc.ref.content.0": ABSENT})
        assert (await store.info(digest)).labels == {"a": "1", "containerd.io/gc.ref.content.0": ABSENT}

    async def test_labels_updated(self, store: ContentStore) -> None:
        """An update replaces all labels or those that its fields name; an empty value takes one away."""
        digest = await put(store, fresh())

        async def update(labels: dict[str, str], *fields: str) -> dict[str, str]:
            answer = await store.update(Info(digest=digest, labels=labels), fields)
            info = await store.info(digest)
            assert info.labels == answer.labels
            assert info.size == answer.size == 5000
            return dict(info.labels)

        assert await update({"a": "1", "b": "2"}) == {"a": "1", "b": "2"}
        assert await update({"a": "3", "c": "4"}, "labels.a") == {"a": "3", "b": "2"}
        assert await update({"c.d/e": "4"}, "labels.c.d/e", "labels.a") == {"b": "2", "c.d/e": "4"}
        assert await update({"x": "y"}, "labels") == {"x": "y"}
        assert await update({}, "labels") == {}

    async def test_update_tells_its_time(self, store: ContentStore) -> None:
        """An update changes the time of the last update, and not the time of the commit."""
        digest = await put(store, fresh())
        before = await store.info(digest)
        await asyncio.sleep(0.02)
        after = await store.update(replace(before, labels={"a": "b"}), ["labels"])
        assert before.updated_at is not None
        assert after.updated_at is not None
        assert after.created_at == before.created_at
        assert after.updated_at > before.updated_at

    async def test_fixed_fields(self, store: ContentStore) -> None:
        """Only labels can be changed."""
        digest = await put(store, fresh(), {"a": "1"})
        before = await store.info(digest)
        for field in ("size", "digest", "created_at", "nonsense", "Labels", ""):
            with pytest.raises(InvalidArgument):
                await store.update(Info(digest=digest, size=1, labels={"a": "2"}), ["labels.a", field])
        assert await store.info(digest) == before

    async def test_label_limit(self, store: ContentStore) -> None:
        """A label of more than 4,096 bytes is refused, in an update and at commit."""
        digest = await put(store, fresh())
        with pytest.raises(InvalidArgument):
            await store.update(Info(digest=digest, labels={"k": "v" * 4096}), ["labels"])
        if not self.keeps_labels:
            return
        async with await store.writer("labelled") as writer:
            await writer.write(fresh())
            with pytest.raises(InvalidArgument):
                await writer.commit(labels={"k": "v" * 4096})

    async def test_labels_of_a_deleted_blob(self, store: ContentStore) -> None:
        """A blob that is stored again has none of the labels from before."""
        data = fresh()
        digest = await put(store, data, {"old": "yes"})
        await store.delete(digest)
        await put(store, data)
        assert (await store.info(digest)).labels == {}


async def _commit(writer: Writer) -> Digest:
    return await writer.commit()


class LaneSuite:
    """What every store with a descriptor lane promises besides."""

    @pytest.fixture
    def store(self) -> ContentStore:
        raise NotImplementedError

    @pytest.fixture
    def lane(self, store: ContentStore) -> DescriptorLane:
        assert isinstance(store, DescriptorLane)
        return store

    async def test_blob_by_descriptor(self, store: ContentStore, lane: DescriptorLane) -> None:
        """A blob's descriptor reads all of it and writes nothing, each from its own position."""
        data = fresh(200_000)
        digest = await put(store, data)
        first, size = await lane.open_blob(digest)
        second, _ = await lane.open_blob(digest)
        try:
            assert size == len(data)
            assert await asyncio.to_thread(os.read, first, size) == data
            assert await asyncio.to_thread(os.read, second, size) == data
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.pwrite(first, b"x", 0)
        finally:
            os.close(first)
            os.close(second)

    async def test_absent_blob_by_descriptor(self, lane: DescriptorLane) -> None:
        """There is no descriptor of a blob that is not there."""
        with pytest.raises(NotFound):
            await lane.open_blob(ABSENT)

    async def test_ingest_by_pipe(self, store: ContentStore, lane: DescriptorLane) -> None:
        """What is written to the pipe is in the ingest when the next writer opens it."""
        data = fresh(3_000_000)
        await pour(lane, "pipe", data, total=len(data))
        async with await store.writer("pipe") as writer:
            assert (writer.status.offset, writer.status.total) == (len(data), len(data))
            assert await writer.commit(size=len(data), expected=Digest.of(data)) == Digest.of(data)
        assert await get(store, Digest.of(data)) == data

    async def test_pipes_one_after_the_other(self, store: ContentStore, lane: DescriptorLane) -> None:
        """A pipe goes on where the last one ended, or from where it is told to."""
        assert await pour(lane, "parts", b"12345") == 0
        assert await pour(lane, "parts", b"67890") == 5
        assert await pour(lane, "parts", b"abc", offset=7) == 7
        async with await store.writer("parts") as writer:
            assert await writer.digest() == Digest.of(b"1234567abc")
        assert await pour(lane, "parts", b"new", offset=0) == 0
        with pytest.raises(OutOfRange):
            await lane.open_ingest("parts", offset=4)
        async with await store.writer("parts") as writer:
            assert await writer.digest() == Digest.of(b"new")

    async def test_pipe_of_a_blob(self, store: ContentStore, lane: DescriptorLane) -> None:
        """A blob that is there needs no pipe."""
        digest = await put(store, fresh())
        with pytest.raises(AlreadyExists):
            await lane.open_ingest("present", expected=digest)

    async def test_pipe_has_the_ref(self, store: ContentStore, lane: DescriptorLane) -> None:
        """A ref has a writer or a pipe; a writer waits for the end of a pipe."""
        async with await store.writer("held"):
            with pytest.raises(Unavailable):
                await lane.open_ingest("held")
        pipe, _ = await lane.open_ingest("held")
        waiting = asyncio.create_task(store.writer("held"), name="waiting")
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await asyncio.to_thread(os.write, pipe, b"bytes")
        os.close(pipe)
        async with await waiting as writer:
            assert writer.status.offset == 5

    async def test_abort_ends_a_pipe(self, store: ContentStore, lane: DescriptorLane) -> None:
        """Whoever writes to an aborted ingest is told by EPIPE."""
        pipe, _ = await lane.open_ingest("aborted-pipe")
        try:
            await asyncio.to_thread(os.write, pipe, b"bytes")
            await store.abort("aborted-pipe")
            with pytest.raises(BrokenPipeError):
                await asyncio.to_thread(os.write, pipe, b"more")
        finally:
            os.close(pipe)
        with pytest.raises(NotFound):
            await store.status("aborted-pipe")


async def pour(lane: DescriptorLane, ref: str, data: bytes, *, total: int = 0, offset: int | None = None) -> int:
    """Write to the pipe of an ingest; the offset where it began."""
    pipe, start = await lane.open_ingest(ref, total=total, offset=offset)

    def write() -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(pipe, view) :]

    try:
        await asyncio.to_thread(write)
    finally:
        os.close(pipe)
    return start
