"""The store on disk: what survives, what is refused, what a full disk does."""

import asyncio
import json
import os
import stat
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from carina.content import Info
from carina.digest import Digest
from carina.errors import FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from contentd import files, ingests
from contentd import writer as writers
from contentd.files import Layout
from contentd.store import LocalContentStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalContentStore]:
    async with LocalContentStore(tmp_path / "content") as store:
        yield store


async def put(store: LocalContentStore, data: bytes, labels: dict[str, str] | None = None) -> Digest:
    async with await store.writer(f"put-{Digest.of(data)}") as writer:
        await writer.write(data)
        return await writer.commit(labels=labels)


def blob(root: Path, digest: Digest) -> Path:
    return root / "blobs" / digest.algorithm / digest.hex


async def test_layout(store: LocalContentStore, tmp_path: Path) -> None:
    """Blobs are where containerd has them, an ingest is two files, and nobody else can look or write there."""
    root = tmp_path / "content"
    digest = await put(store, b"data")
    assert blob(root, digest).read_bytes() == b"data"
    assert stat.S_IMODE(blob(root, digest).stat().st_mode) == 0o444
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert list((root / "ingest").iterdir()) == []
    async with await store.writer("../x", total=9, expected=Digest.of(b"other")) as writer:
        await writer.write(b"123")
    name = Digest.of(b"../x").hex
    assert {path.name for path in (root / "ingest").iterdir()} == {name, f"{name}.json"}
    assert (root / "ingest" / name).read_bytes() == b"123"
    about = json.loads((root / "ingest" / f"{name}.json").read_text())
    assert datetime.fromisoformat(about.pop("started_at")).tzinfo is not None
    assert about == {"ref": "../x", "total": 9, "expected": str(Digest.of(b"other"))}


async def test_everything_survives_a_restart(tmp_path: Path) -> None:
    """Blobs, labels, times and ingests are the same in the next process."""
    async with LocalContentStore(tmp_path) as store:
        digest = await put(store, b"data", {"a": "b"})
        async with await store.writer("ref", total=6) as writer:
            await writer.write(b"123")
        before = await store.info(digest), await store.statuses()
    async with LocalContentStore(tmp_path) as store:
        assert (await store.info(digest), await store.statuses()) == before
        async with await store.writer("ref", total=6) as writer:
            await writer.write(b"456")
            assert await writer.commit(expected=Digest.of(b"123456")) == Digest.of(b"123456")


async def test_one_owner(store: LocalContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process can't open the same directory."""
    monkeypatch.setattr("contentd.files.CLAIM_SECONDS", 0.1)
    with pytest.raises(FailedPrecondition, match="owned by another process"):
        async with LocalContentStore(tmp_path / "content"):
            pass


async def test_leftovers_are_removed(tmp_path: Path) -> None:
    """What a crash can leave behind is gone after the next start, and nothing else is."""
    async with LocalContentStore(tmp_path) as store:
        digest = await put(store, b"data", {"a": "b"})
        async with await store.writer("kept") as writer:
            await writer.write(b"123")
    half = [tmp_path / "ingest" / name for name in ("0" * 64, f"{'1' * 64}.json", f"{Digest.of(b'kept').hex}.json.new")]
    for path in half:
        path.write_text("half made")
    for name in (digest.hex + ".new", Digest.of(b"no blob").hex):
        (tmp_path / "labels" / "sha256" / name).write_text("{}")
    async with LocalContentStore(tmp_path) as store:
        assert [status.ref for status in await store.statuses()] == ["kept"]
        assert (await store.info(digest)).labels == {"a": "b"}
    assert not [path for path in half if path.exists()]
    assert [path.name for path in (tmp_path / "labels" / "sha256").iterdir()] == [digest.hex]


@pytest.mark.parametrize("cut", ["", "renamed", "described"])
async def test_ingests_of_earlier_versions_are_resumed(tmp_path: Path, cut: str) -> None:
    """An ingest in the form that earlier versions kept goes on where it was, also where bringing it over was cut."""
    async with LocalContentStore(tmp_path):
        pass
    name = Digest.of(b"ref").hex
    old = tmp_path / "ingest" / (f"{name}.earlier" if cut else name)
    old.mkdir()
    values = {"ref": "ref", "data": "123", "startedat": "2026-01-02T03:04:05+00:00", "updatedat": "x", "total": "6"}
    for file, text in {**values, "expected": Digest.of(b"123456")}.items():
        (old / file).write_text(text)
    if cut == "described":
        (tmp_path / "ingest" / f"{name}.json").write_text('{"ref": "r')
    (tmp_path / "ingest" / ("1" * 64)).mkdir()
    async with LocalContentStore(tmp_path) as store:
        (status,) = await store.statuses()
        assert (status.ref, status.offset, status.total) == ("ref", 3, 6)
        assert (status.expected, status.started_at) == (
            Digest.of(b"123456"),
            datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        )
        async with await store.writer("ref", total=6) as writer:
            await writer.write(b"456")
            assert await writer.commit() == Digest.of(b"123456")
    assert list((tmp_path / "ingest").iterdir()) == []


async def test_commit_cut_before_the_rename(tmp_path: Path) -> None:
    """An ingest that a commit had made read-only already is resumed."""
    async with LocalContentStore(tmp_path) as store, await store.writer("ref") as writer:
        await writer.write(b"123")
    (tmp_path / "ingest" / Digest.of(b"ref").hex).chmod(0o444)
    async with LocalContentStore(tmp_path) as store, await store.writer("ref") as writer:
        await writer.write(b"456")
        assert await writer.commit() == Digest.of(b"123456")


async def test_forgotten_ingests_expire(tmp_path: Path) -> None:
    """An ingest that nobody wrote to for the set time is removed; one that is open never is."""
    async with LocalContentStore(tmp_path) as store:
        async with await store.writer("old") as writer:
            await writer.write(b"123")
        async with await store.writer("new") as writer:
            await writer.write(b"123")
    old = tmp_path / "ingest" / Digest.of(b"old").hex
    os.utime(old, (1, 1))
    async with LocalContentStore(tmp_path) as store:
        assert [status.ref for status in await store.statuses()] == ["new"]
    async with LocalContentStore(tmp_path, expire=timedelta(0)) as store:
        async with await store.writer("open"):
            await asyncio.sleep(0.01)
            await store.expire()
            assert [status.ref for status in await store.statuses()] == ["open"]


async def test_open_reader_outlives_its_blob(store: LocalContentStore) -> None:
    """A reader goes on reading a blob that is deleted meanwhile, and the next one is refused."""
    digest = await put(store, b"data")
    async with await store.reader(digest) as reader:
        await store.delete(digest)
        assert await reader.read(0, 100) == b"data"
        with pytest.raises(NotFound):
            await store.reader(digest)


async def test_truncated_within(store: LocalContentStore) -> None:
    """A writer can be cut anywhere; the digest is of what is left."""
    async with await store.writer("ref") as writer:
        await writer.write(b"0123456789")
        await writer.truncate(4)
        assert (writer.status.offset, await writer.digest()) == (4, Digest.of(b"0123"))
        await writer.write(b"xyz")
        assert await writer.commit() == Digest.of(b"0123xyz")


async def test_aborted_under_its_writer(store: LocalContentStore) -> None:
    """An abort takes the ingest from whoever writes to it, who is told with the next call."""
    writer = await store.writer("ref")
    await writer.write(b"123")
    await store.abort("ref")
    with pytest.raises(FailedPrecondition, match="aborted"):
        await writer.write(b"456")
    async with await store.writer("ref") as second:
        assert second.status.offset == 0
        await writer.close()
        await second.write(b"789")


async def test_writer_waits_for_an_abort(store: LocalContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a ref while it is aborted gets a new ingest, not the one that is being removed."""
    async with await store.writer("ref") as writer:
        await writer.write(b"123")
    remove = ingests.remove

    def slowly(layout: Layout, ref: str) -> None:
        time.sleep(0.1)
        remove(layout, ref)

    monkeypatch.setattr(ingests, "remove", slowly)
    aborting = asyncio.create_task(store.abort("ref"))
    await asyncio.sleep(0.05)
    async with await store.writer("ref") as second:
        await aborting
        await second.write(b"456")
        assert await second.commit() == Digest.of(b"456")


async def test_names_of_a_killed_predecessor_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store says of no blob that it is there before its name is on the disk."""
    flushed = []
    flush = files.flush_directory

    def noted(path: str) -> None:
        flushed.append(os.path.realpath(path))
        flush(path)

    monkeypatch.setattr(files, "flush_directory", noted)
    async with LocalContentStore(tmp_path / "content"):
        assert {str(tmp_path), f"{tmp_path}/content/blobs/sha256", f"{tmp_path}/content/labels/sha512"} <= set(flushed)


async def test_many_small_writers(store: LocalContentStore) -> None:
    """Sixty-four blobs at once are all stored."""
    blobs = [os.urandom(100) for _ in range(64)]
    assert await asyncio.gather(*(put(store, data) for data in blobs)) == [Digest.of(data) for data in blobs]


async def test_damaged_labels_are_named(store: LocalContentStore, tmp_path: Path) -> None:
    """Labels are whole or old, whenever an update is cut: the file is replaced, never written over."""
    digest = await put(store, b"data", {"a": "1"})
    path = tmp_path / "content" / "labels" / "sha256" / digest.hex
    before = path.stat().st_ino
    await store.update(Info(digest=digest, labels={"a": "2"}), ["labels"])
    assert path.stat().st_ino != before
    assert (await store.info(digest)).labels == {"a": "2"}


async def test_silent_pipe(store: LocalContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a ref whose pipe brings nothing is refused after the stall limit."""
    monkeypatch.setattr(writers, "STALL_SECONDS", 0.1)
    pipe, _ = await store.open_ingest("ref")
    try:
        with pytest.raises(Unavailable, match="locked"):
            await store.writer("ref")
    finally:
        os.close(pipe)


async def test_pipe_of_a_closing_store(tmp_path: Path) -> None:
    """When the store closes, whoever writes to a pipe gets EPIPE, and what had arrived is kept."""
    async with LocalContentStore(tmp_path) as store:
        pipe, _ = await store.open_ingest("ref")
        os.write(pipe, b"123")
        while (await store.status("ref")).offset < 3:
            await asyncio.sleep(0.01)
    with pytest.raises(BrokenPipeError):
        os.write(pipe, b"456")
    os.close(pipe)
    async with LocalContentStore(tmp_path) as store:
        assert (await store.status("ref")).offset == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.root
async def test_full_disk(small_disk: Path) -> None:
    """A full disk fails the write that names ref and store; what was written before is kept, and can be completed."""
    async with LocalContentStore(small_disk / "content") as store:
        data = os.urandom(3_000_000)
        writer = await store.writer("ref")
        await writer.write(data)
        with pytest.raises(ResourceExhausted, match=f"'ref' in {small_disk}/content"):
            await writer.write(bytes(3_000_000))
        assert (writer.status.offset, await writer.digest()) == (len(data), Digest.of(data))
        assert await writer.commit() == Digest.of(data)


@pytest.mark.root
async def test_full_disk_behind_a_pipe(small_disk: Path) -> None:
    """Whoever writes to a pipe into a full disk gets EPIPE, and who asks for the ref next is told why."""
    async with LocalContentStore(small_disk / "content") as store:
        pipe, _ = await store.open_ingest("ref")

        def write() -> None:
            while True:
                os.write(pipe, bytes(100_000))

        with pytest.raises(BrokenPipeError):
            await asyncio.to_thread(write)
        os.close(pipe)
        with pytest.raises(ResourceExhausted, match="'ref'"):
            await store.writer("ref")
        async with await store.writer("ref") as writer:
            assert writer.status.offset > 2_000_000
            await writer.truncate(0)
            await writer.write(b"123")
            assert await writer.commit() == Digest.of(b"123")
