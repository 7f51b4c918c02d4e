"""The same layers applied by containerd's differ and by ours, compared in everything that a tree can show."""

import io
import os
import shutil
import stat
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import zstandard

from carina import context
from carina.content.client import RemoteContentStore
from carina.descriptor import Descriptor
from carina.diff.client import RemoteDiffer
from carina.digest import Digest
from carina.errors import AlreadyExists
from carina.layer.compression import OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from carina.layer.process import apply
from carina.mount import Mount
from carina.rpc.client import connect
from support.content import containerd, directory
from support.layers import TIME, Layer, blob_of, compressed

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd"),
]

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


def _sparse(version: str) -> bytes:
    """A file of mostly holes, in one of GNU tar's formats for them."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, f"sparse-{version}")
        with path.open("wb") as file:
            for place in (1 << 20, 5 << 20):
                file.seek(place)
                file.write(b"data")
            file.truncate(9 << 20)
        os.utime(path, (TIME, TIME))
        command = [
            "tar",
            "-c",
            "-S",
            "--format=posix",
            "--owner=0",
            "--group=0",
            f"--sparse-version={version}",
            "-C",
            scratch,
            path.name,
        ]
        return subprocess.run(command, check=True, capture_output=True).stdout


def _packed(form: int, *names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uid = 5, TIME, 3_000_000
            archive.addfile(member, io.BytesIO(b"bytes"))
    return buffer.getvalue()


LAYERS: Mapping[str, bytes] = {
    "files": Layer().directory("d").file("d/f", b"one").file("d/g", bytes(70_000), mode=0o600).bytes(),
    "owners": Layer().directory("o", uid=5, gid=6).file("o/f", uid=4_294_000_000, gid=1 << 31).bytes(),
    "modes": Layer().directory("m", mode=0o3777).file("m/su", mode=0o6755, uid=9).file("m/no", mode=0).bytes(),
    "times": Layer().file("t", pax_headers={"mtime": "1700000000.123456789"}).file("u", mtime=1).bytes(),
    "long names": _packed(tarfile.PAX_FORMAT, "n" * 200, "p/" * 60 + "q", "ünï"),
    "GNU names": _packed(tarfile.GNU_FORMAT, "g" * 180, "h/" * 70 + "i"),
    "ustar": Layer().file("x/" * 40 + "prefix").bytes(),
    "links": Layer()
    .directory("l")
    .file("l/f", b"f")
    .link("l/f", "l/h")
    .link("/l/f", "l/a")
    .symlink("f", "l/s")
    .bytes(),
    "dangling": Layer().symlink("/nowhere/at/all", "l2").symlink("../../up", "d/up").bytes(),
    "devices": Layer().directory("dev").device("dev/null", 1, 3).device("dev/big", 300, 70_000).fifo("dev/p").bytes(),
    "attributes": Layer()
    .file("cap", b"x", pax_headers={"SCHILY.xattr.security.capability": os.fsdecode(CAPABILITY)})
    .file("user", pax_headers={"SCHILY.xattr.user.key": "value", "SCHILY.xattr.user.other": "ü"})
    .directory("xd", pax_headers={"SCHILY.xattr.user.k": "v"})
    .bytes(),
    "whiteouts": Layer().file("d/.wh.g").file("l/.wh.h").bytes(),
    "opaque": Layer().directory("m").file("m/.wh..wh..opq").file("m/new", b"new").bytes(),
    "opaque last": Layer().directory("o").file("o/after", b"1").file("o/.wh..wh..opq").bytes(),
    "file over directory": Layer().file("xd", b"file").bytes(),
    "directory over file": Layer().directory("cap").file("cap/in", b"in").bytes(),
    "link over file": Layer().symlink("d/f", "user").bytes(),
    "twice": Layer()
    .file("w", b"first")
    .file("w", b"second", mode=0o640)
    .directory("w2")
    .directory("w2", 0o700)
    .bytes(),
    "dots": Layer().directory("./").directory("./dot/").file("./dot/f", b"f").file("/absolute", b"a").bytes(),
    # In GNU's own format containerd refuses them.
    "sparse": _sparse("1.0"),
    "sparse of old": _sparse("0.1"),
    "implied": Layer().file("im/pli/ed", b"x").file("d/more/yet", b"y").bytes(),
}

PACKED: Sequence[tuple[str, Callable[[bytes], bytes]]] = (
    (OCI_LAYER_GZIP, compressed),
    (OCI_LAYER_ZSTD, zstandard.ZstdCompressor().compress),
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with directory() as path, containerd(path) as address:
        yield address


@pytest.fixture
async def theirs(address: str) -> AsyncIterator[tuple[RemoteContentStore, RemoteDiffer]]:
    channel = connect(address)
    with context.within(namespace="differs"):
        yield RemoteContentStore(channel), RemoteDiffer(channel)
    channel.close()


async def _by_containerd(
    theirs: tuple[RemoteContentStore, RemoteDiffer], data: bytes, mount: Mount, *, media_type: str
) -> Descriptor:
    store, differ = theirs
    digest = Digest.of(data)
    try:
        async with await store.writer(f"layer {digest}", total=len(data), expected=digest) as writer:
            await writer.write(data)
            await writer.commit(size=len(data), expected=digest, labels={"containerd.io/gc.root": "x"})
    except AlreadyExists:
        pass
    return await differ.apply(Descriptor(media_type=media_type, digest=digest, size=len(data)), [mount], sync_fs=False)


async def _by_us(data: bytes, mount: Mount, *, media_type: str) -> Descriptor:
    layer = Descriptor(media_type=media_type, digest=Digest.of(data), size=len(data))
    with blob_of(data) as blob:
        return await apply(blob, layer, [mount], sync_fs=False)


def _shown(root: Path) -> dict[str, tuple[object, ...]]:
    """Every file: kind and mode, owner, device, size, time, links, attributes, content. Directories that no layer
    describes have the time at which they were made."""
    found: dict[str, tuple[object, ...]] = {}
    names: dict[int, str] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(root))
        first = names.setdefault(status.st_ino, name)
        attributes = {
            key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
        }
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        whole = status.st_mtime_ns if status.st_mtime < TIME + 1000 else "now"
        found[name] = (
            *(oct(status.st_mode), status.st_uid, status.st_gid, status.st_rdev, status.st_nlink),
            *(whole, first, attributes, content),
        )
    return found


@pytest.mark.parametrize("packed", [False, True], ids=["tar", "gzip and zstd"])
async def test_a_plain_tree_is_the_same(
    tmp_path: Path, theirs: tuple[RemoteContentStore, RemoteDiffer], packed: bool
) -> None:
    """Some twenty layers, one on top of the other: after each the trees and the diff ids are equal."""
    trees = [tmp_path / "theirs", tmp_path / "ours"]
    for tree in trees:
        tree.mkdir()
    mounts = [Mount(type="bind", source=str(tree), options=("rbind", "rw")) for tree in trees]
    for number, (name, archive) in enumerate(LAYERS.items()):
        media_type, pack = PACKED[number % 2] if packed else (OCI_LAYER, bytes)
        data = pack(archive)
        expected = await _by_containerd(theirs, data, mounts[0], media_type=media_type)
        found = await _by_us(data, mounts[1], media_type=media_type)
        assert (found.digest, found.size) == (expected.digest, expected.size)
        assert _shown(trees[1]) == _shown(trees[0]), name
    assert len(_shown(trees[1])) > len(LAYERS)


async def test_overlay_form_is_the_same(tmp_path: Path, theirs: tuple[RemoteContentStore, RemoteDiffer]) -> None:
    """Each layer in an upper directory of its own, on the ones before: the directories are equal, marks included."""
    lowers: dict[str, list[str]] = {"theirs": [], "ours": []}
    for number, (name, archive) in enumerate(LAYERS.items()):
        shown = []
        for whose, below in lowers.items():
            upper, work = tmp_path / f"{whose}{number}", tmp_path / f"{whose}{number}-work"
            upper.mkdir()
            work.mkdir()
            mount = Mount(type="bind", source=str(upper), options=("rbind", "rw"))
            if below:
                options = (f"lowerdir={':'.join(below)}", f"upperdir={upper}", f"workdir={work}")
                mount = Mount(type="overlay", source="overlay", options=options)
            if whose == "ours":
                await _by_us(archive, mount, media_type=OCI_LAYER)
            else:
                await _by_containerd(theirs, archive, mount, media_type=OCI_LAYER)
            below.insert(0, str(upper))
            shown.append(_shown(upper))
        assert shown[1] == shown[0], name
