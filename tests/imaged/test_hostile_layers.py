"""Hostile and damaged layers through the Diff service: one clear error each, and nothing left behind."""

import os
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zstandard

from carina import errors
from carina.content import Info
from carina.descriptor import Descriptor
from carina.diff.client import RemoteDiffer
from carina.diff.server import DiffService
from carina.digest import Digest
from carina.layer import Limits
from carina.layer.compression import OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from carina.mount import Mount
from carina.rpc.client import connect
from carina.rpc.server import serve
from imaged.differ import LocalDiffer
from support.layers import Layer, bind, compressed
from support.stores import MemoryContent
from support.volumes import volume

pytestmark = pytest.mark.root

MANY = Layer()
for _number in range(2000):
    MANY.file(f"f{_number}")
ZEROS = Layer().file("zeros", bytes(8 << 20)).bytes()
SMALL = Layer().file("f", os.urandom(5000)).bytes()


def _members(data: bytes) -> bytes:
    """A gzip member for each 64 KiB: none of them is suspicious by itself."""
    return b"".join(compressed(data[at : at + (64 << 10)]) for at in range(0, len(data), 64 << 10))


def _sparse(size: int) -> bytes:
    """A file of one byte that says it is `size` bytes long."""
    headers = {"GNU.sparse.size": str(size), "GNU.sparse.map": f"{size - 1},1"}
    return Layer().file("sparse", b"x", pax_headers=headers).bytes()


ZSTD = zstandard.ZstdCompressor()
WIDE = b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + b"\x01\x00\x00"
ATTRIBUTE = {"SCHILY.xattr.user." + "n" * 300: "v"}

REFUSED: Mapping[str, tuple[bytes, str, Limits, type[errors.CarinaError], str]] = {
    "too many bytes": (
        *(compressed(ZEROS), OCI_LAYER_GZIP, Limits(bytes=1 << 20)),
        *(errors.ResourceExhausted, "larger than 1048576 bytes"),
    ),
    "too many bytes of zstd": (
        *(ZSTD.compress(ZEROS), OCI_LAYER_ZSTD, Limits(bytes=1 << 20)),
        *(errors.ResourceExhausted, "larger than 1048576 bytes"),
    ),
    "ratio": (
        *(compressed(ZEROS), OCI_LAYER_GZIP, Limits(ratio=100, ratio_from=1 << 20)),
        *(errors.ResourceExhausted, "more than 100 times as large as its blob of"),
    ),
    "ratio of many members": (
        *(_members(ZEROS), OCI_LAYER_GZIP, Limits(ratio=100, ratio_from=1 << 20)),
        *(errors.ResourceExhausted, "more than 100 times as large as its blob of"),
    ),
    "too many entries": (
        *(compressed(MANY.bytes()), OCI_LAYER_GZIP, Limits(entries=1000)),
        *(errors.ResourceExhausted, "more than 1000 entries"),
    ),
    "a window of 2 GiB": (WIDE, OCI_LAYER_ZSTD, Limits(), errors.InvalidArgument, "zstd stream is damaged"),
    "a sparse file beyond the limit": (
        *(_sparse(1 << 30), OCI_LAYER, Limits(bytes=1 << 20)),
        *(errors.ResourceExhausted, "'sparse' in the layer can't be written"),
    ),
    "cut off": (compressed(SMALL)[:-9], OCI_LAYER_GZIP, Limits(), errors.InvalidArgument, "gzip stream is damaged"),
    "cut off zstd": (ZSTD.compress(SMALL)[:-9], OCI_LAYER_ZSTD, Limits(), errors.InvalidArgument, "is cut off"),
    "trailing bytes": (
        *(compressed(SMALL) + b"what is no member", OCI_LAYER_GZIP, Limits()),
        *(errors.InvalidArgument, "gzip stream is damaged"),
    ),
    "trailing bytes of zstd": (
        *(ZSTD.compress(SMALL) + b"what is no frame", OCI_LAYER_ZSTD, Limits()),
        *(errors.InvalidArgument, "bytes that are no frame"),
    ),
    "an attribute with a long name": (
        *(Layer().file("f", pax_headers=ATTRIBUTE).bytes(), OCI_LAYER, Limits()),
        *(errors.InvalidArgument, "'f' in the layer can't be made"),
    ),
    "a name of 300 bytes": (
        *(Layer().file("n" * 300).bytes(), OCI_LAYER, Limits()),
        *(errors.InvalidArgument, "in the layer can't be made: file name too long"),
    ),
    "a socket": (
        *(Layer().node("socket", b"s").bytes(), OCI_LAYER, Limits()),
        *(errors.InvalidArgument, "'socket' in the layer is of a type"),
    ),
    "not a layer": (b"{}", "application/json", Limits(), errors.Unimplemented, "'application/json' is not that of"),
}


def _put(store: MemoryContent, data: bytes, media_type: str) -> Descriptor:
    digest = Digest.of(data)
    store.blobs[digest], store.infos[digest] = data, Info(digest=digest, size=len(data))
    return Descriptor(media_type=media_type, digest=digest, size=len(data))


@asynccontextmanager
async def _differ(directory: Path, store: MemoryContent, limits: Limits) -> AsyncIterator[RemoteDiffer]:
    address = f"unix://{directory}/diff.sock"
    own = LocalDiffer(store, scratch=directory / "scratch", limits=limits)
    async with serve(address, [DiffService(own)], name="imaged"):
        channel = connect(address)
        try:
            yield RemoteDiffer(channel)
        finally:
            channel.close()


@pytest.mark.parametrize("case", REFUSED)
async def test_is_refused(tmp_path: Path, case: str) -> None:
    """With the error of its kind and a sentence; the service goes on, and applies the next layer."""
    data, media_type, limits, kind, text = REFUSED[case]
    for name in ("tree", "next"):
        (tmp_path / name).mkdir()
    store = MemoryContent()
    async with _differ(tmp_path, store, limits) as differ:
        with pytest.raises(kind, match=text) as raised:
            await differ.apply(_put(store, data, media_type), [bind(tmp_path / "tree")], sync_fs=False)
        assert "\n" not in str(raised.value)
        await differ.apply(_put(store, SMALL, OCI_LAYER), [bind(tmp_path / "next")], sync_fs=False)
    assert os.listdir(tmp_path / "next") == ["f"]
    assert os.listdir(tmp_path / "scratch") == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


async def test_what_overlayfs_knows_is_taken_from_a_layer_with_care(tmp_path: Path) -> None:
    """A device 0:0 hides what it stands on, as a whiteout does; set-user-ID bits and capabilities are kept, and the
    attributes that only overlayfs may write are not."""
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    headers = {
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.trusted.overlay.metacopy": "",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.security.capability": os.fsdecode(capability),
    }
    layer = Layer().file("su", b"x", 0o6755, pax_headers=headers).file("gone").device("gone", 0, 0)
    (tmp_path / "upper").mkdir()
    store = MemoryContent()
    mount = Mount(type="overlay", source="overlay", options=(f"upperdir={tmp_path}/upper",))
    async with _differ(tmp_path, store, Limits()) as differ:
        await differ.apply(_put(store, layer.bytes(), OCI_LAYER), [mount], sync_fs=False)
    made, gone = (os.lstat(tmp_path / "upper" / name) for name in ("su", "gone"))
    assert made.st_mode & 0o7777 == 0o6755
    assert os.listxattr(tmp_path / "upper/su") == ["security.capability"]
    assert (gone.st_mode, gone.st_rdev) == (0o020000, 0)


async def test_a_full_inode_table_is_told(tmp_path: Path) -> None:
    """The file that there was no inode for is named."""
    store = MemoryContent()
    with volume(tmp_path, "ext4", megabytes=16, options=("-N", "64")) as full:
        (full / "tree").mkdir()
        async with _differ(tmp_path, store, Limits()) as differ:
            layer = _put(store, compressed(MANY.bytes()), OCI_LAYER_GZIP)
            with pytest.raises(errors.ResourceExhausted, match="in the layer can't be written: no space left"):
                await differ.apply(layer, [bind(full / "tree")], sync_fs=False)
