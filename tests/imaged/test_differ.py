"""The differ: blobs of a content store into trees and back, whatever the store offers, in process and over a socket."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from carina.content import Info, Writer
from carina.descriptor import Descriptor
from carina.diff.client import RemoteDiffer
from carina.diff.server import DiffService
from carina.digest import Digest
from carina.errors import InvalidArgument, NotFound, ResourceExhausted, Unimplemented
from carina.labels import UNCOMPRESSED
from carina.layer.compression import OCI_LAYER, OCI_LAYER_GZIP
from carina.rpc.client import connect
from carina.rpc.server import serve
from imaged.differ import LocalDiffer
from support.layers import Layer, bind, compressed, listing
from support.stores import MemoryContent

pytestmark = pytest.mark.root


class LaneContent(MemoryContent):
    """A store that hands out descriptors of blobs, and pipes into ingests."""

    async def open_blob(self, digest: Digest) -> tuple[int, int]:
        await self.info(digest)
        return await asyncio.to_thread(_memory_file, self.blobs[digest]), len(self.blobs[digest])

    async def open_ingest(
        self, ref: str, *, total: int = 0, expected: Digest | None = None, offset: int | None = None
    ) -> tuple[int, int]:
        raise Unimplemented("messages only")


def _memory_file(data: bytes) -> int:
    descriptor = os.memfd_create("blob")
    os.write(descriptor, data)
    return descriptor


class FullContent(MemoryContent):
    """A store without room."""

    async def writer(self, ref: str, *, total: int = 0, expected: Digest | None = None) -> Writer:
        raise ResourceExhausted(f"ingest {ref}: no space left on device")


def _put(store: MemoryContent, data: bytes, media_type: str = OCI_LAYER_GZIP) -> Descriptor:
    digest = Digest.of(data)
    store.blobs[digest], store.infos[digest] = data, Info(digest=digest, size=len(data))
    return Descriptor(media_type=media_type, digest=digest, size=len(data))


@pytest.mark.parametrize("kind", [MemoryContent, LaneContent])
async def test_applies_a_blob_of_the_store(tmp_path: Path, kind: type[MemoryContent]) -> None:
    """Descriptors or messages: the tree and the diff id are the same."""
    store = kind()
    archive = Layer().file("f", os.urandom(3 << 20)).bytes()
    layer = _put(store, compressed(archive))
    (tmp_path / "tree").mkdir()
    applied = await LocalDiffer(store, scratch=tmp_path / "scratch").apply(layer, [bind(tmp_path / "tree")])
    assert (applied.digest, applied.size) == (Digest.of(archive), len(archive))
    assert sorted(listing(tmp_path / "tree")) == ["f"]


@pytest.mark.parametrize("kind", [MemoryContent, LaneContent])
async def test_a_diff_becomes_a_blob(tmp_path: Path, kind: type[MemoryContent]) -> None:
    """What a diff writes can be applied; its blob carries the diff id as containerd's does, and the caller's labels."""
    for name in ("lower", "upper", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "upper/f").write_bytes(os.urandom(3 << 20))
    store = kind()
    differ = LocalDiffer(store, scratch=tmp_path / "scratch")
    lower, upper = [bind(tmp_path / "lower")], [bind(tmp_path / "upper")]
    made = await differ.diff(lower, upper, ref="r", labels={"a": "b"})
    applied = await differ.apply(made, [bind(tmp_path / "other")])
    assert made.media_type == OCI_LAYER_GZIP
    assert dict(store.infos[made.digest].labels) == {"a": "b", UNCOMPRESSED: applied.digest}
    assert listing(tmp_path / "other") == listing(tmp_path / "upper")
    assert await differ.diff(lower, upper, labels={"c": "d"}) == made
    assert store.infos[made.digest].labels["c"] == "d"
    assert (store.ingests, store.open) == ({}, set())


async def test_a_store_without_room_says_so(tmp_path: Path) -> None:
    """The store's own error arrives, not that of the worker whose pipe broke."""
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper/f").write_bytes(os.urandom(3 << 20))
    with pytest.raises(ResourceExhausted, match="no space left"):
        await LocalDiffer(FullContent(), scratch=tmp_path).diff([], [bind(tmp_path / "upper")])


async def test_errors_are_those_of_the_interface(tmp_path: Path) -> None:
    """A missing blob, an unknown media type and a damaged layer are told apart."""
    store = MemoryContent()
    differ = LocalDiffer(store, scratch=tmp_path)
    missing = Descriptor(media_type=OCI_LAYER, digest=Digest.of(b"missing"), size=7)
    with pytest.raises(NotFound):
        await differ.apply(missing, [bind(tmp_path)])
    with pytest.raises(Unimplemented):
        await differ.apply(_put(store, b"x", "text/plain"), [bind(tmp_path)])
    with pytest.raises(InvalidArgument):
        await differ.apply(_put(store, b"x" * 600, OCI_LAYER), [bind(tmp_path)])
    with pytest.raises(Unimplemented):
        await differ.diff([], [bind(tmp_path)], media_type="text/plain")


async def test_only_so_many_workers_run_at_a_time(tmp_path: Path) -> None:
    """Ten layers at once take turns, and all arrive."""
    store = LaneContent()
    differ = LocalDiffer(store, scratch=tmp_path, parallel=2)
    async with asyncio.TaskGroup() as group:
        for number in range(6):
            tree = tmp_path / str(number)
            tree.mkdir()
            layer = _put(store, compressed(Layer().file(f"f{number}").bytes()))
            group.create_task(differ.apply(layer, [bind(tree)]), name=f"apply {number}")
    assert [os.listdir(tmp_path / str(number)) for number in range(6)] == [[f"f{number}"] for number in range(6)]


async def test_over_a_socket(tmp_path: Path) -> None:
    """The remote differ is the same differ: results, errors and labels."""
    for name in ("tree", "empty"):
        (tmp_path / name).mkdir()
    store = MemoryContent()
    archive = Layer().file("f", b"data").bytes()
    layer = _put(store, compressed(archive))
    address = f"unix://{tmp_path}/diff.sock"
    differ = LocalDiffer(store, scratch=tmp_path / "scratch")
    async with serve(address, [DiffService(differ)], name="imaged"):
        channel = connect(address)
        remote = RemoteDiffer(channel)
        try:
            applied = await remote.apply(layer, [bind(tmp_path / "tree")])
            made = await remote.diff([bind(tmp_path / "empty")], [bind(tmp_path / "tree")], media_type=OCI_LAYER)
            with pytest.raises(Unimplemented):
                await remote.apply(_put(store, b"x", "text/plain"), [bind(tmp_path / "tree")])
        finally:
            channel.close()
    assert applied.digest == Digest.of(archive)
    listed = await asyncio.to_thread(
        subprocess.run, ["tar", "t"], input=store.blobs[made.digest], capture_output=True, check=True
    )
    assert listed.stdout == b"f\n"
