"""Workers: layers applied to mounts and made from them, by processes that leave nothing behind."""

import asyncio
import gzip
import io
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import zstandard

from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unimplemented,
)
from carina.layer import Limits
from carina.layer.compression import OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from carina.layer.process import apply, diff
from carina.layer.worker import NAME
from carina.mount import Mount
from support.layers import Layer, apply_there, bind, blob_of, compressed, listing

pytestmark = pytest.mark.root

DOCKER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def _upper(*directories: Path) -> Mount:
    """Overlay: the upper directory, and those below it."""
    options = [f"upperdir={directories[0]}", f"workdir={directories[0]}.work"]
    if directories[1:]:
        options.append("lowerdir=" + ":".join(map(str, directories[1:])))
    return Mount(type="overlay", source="overlay", options=tuple(options))


@contextmanager
def _mounted(kind: str, options: str, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", kind, kind, "-o", options, str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _seen(*directories: Path) -> AbstractContextManager[Path]:
    """What a container would see of overlay layers, the topmost first."""
    return _mounted("overlay", f"lowerdir={':'.join(map(str, directories))}", directories[0].parent / "seen")


def _made(parent: Path, *names: str) -> list[Path]:
    for name in names:
        (parent / name).mkdir()
    return [parent / name for name in names]


@pytest.mark.parametrize("kind", ["plain", "gzip", "members", "zstd", "frames", "docker"])
async def test_applies_every_compression(tmp_path: Path, kind: str) -> None:
    """The diff id is that of the tar stream, however it is packed."""
    archive = Layer().file("f", os.urandom(300_000)).file("g", b"g").bytes()
    half = len(archive) // 2
    zstd = zstandard.ZstdCompressor(write_checksum=True)
    packed, media_type = {
        "plain": (archive, OCI_LAYER),
        "gzip": (compressed(archive), OCI_LAYER_GZIP),
        "members": (compressed(archive[:half]) + compressed(archive[half:]), OCI_LAYER_GZIP),
        "zstd": (zstd.compress(archive), OCI_LAYER_ZSTD),
        "frames": (
            b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstd.compress(archive[:half]) + zstd.compress(archive[half:]),
            OCI_LAYER_ZSTD,
        ),
        "docker": (compressed(archive), DOCKER),
    }[kind]
    applied = await apply_there(packed, bind(tmp_path), media_type=media_type)
    assert applied == Descriptor(media_type=OCI_LAYER, digest=Digest.of(archive), size=len(archive))
    assert sorted(os.listdir(tmp_path)) == ["f", "g"]


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "garbage"])
async def test_refuses_damaged_streams(tmp_path: Path, kind: str, damage: str) -> None:
    """A stream that ends early, is altered or goes on after its end is an invalid argument."""
    archive = Layer().file("f", os.urandom(300_000)).bytes()
    packed = bytearray(
        compressed(archive) if kind == "gzip" else zstandard.ZstdCompressor(write_checksum=True).compress(archive)
    )
    if damage == "cut":
        del packed[-3:]
    elif damage == "flipped":
        packed[len(packed) // 2] ^= 0x55
    else:
        packed += b"garbage that is no gzip member and no zstd frame"
    with pytest.raises(InvalidArgument):
        await apply_there(bytes(packed), bind(tmp_path), media_type=OCI_LAYER_GZIP)


@pytest.mark.parametrize(
    "media_type", ["application/json", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", ""]
)
async def test_unknown_media_types_are_unimplemented(tmp_path: Path, media_type: str) -> None:
    """What is no layer is refused the way that lets a caller try another differ."""
    with pytest.raises(Unimplemented):
        await apply_there(b"", bind(tmp_path), media_type=media_type)


async def test_a_bomb_ends_at_the_limits(tmp_path: Path) -> None:
    """Bytes and ratio are limited, whatever the blob says of itself; zstd windows too."""
    archive = Layer().file("zeros", bytes(40 << 20)).bytes()
    packed = compressed(archive)
    with pytest.raises(ResourceExhausted, match="larger than"):
        await apply_there(packed, bind(tmp_path), media_type=OCI_LAYER_GZIP, limits=Limits(bytes=1 << 20))
    limits = Limits(ratio=100, ratio_from=1 << 20)
    with pytest.raises(ResourceExhausted, match="times as large"):
        await apply_there(packed, bind(tmp_path), media_type=OCI_LAYER_GZIP, limits=limits)
    wide = b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + b"\x01\x00\x00"
    with pytest.raises(InvalidArgument, match="zstd"):
        await apply_there(wide, bind(tmp_path), media_type=OCI_LAYER_ZSTD)


async def test_metadata_is_kept(tmp_path: Path) -> None:
    """Modes with set-user-ID, owners, capabilities, attributes, devices and the times of directories arrive."""
    capability = "\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    layer = (
        Layer()
        .directory("d", 0o2775, uid=5, gid=6)
        .file("d/su", b"x", 0o6755, uid=1, gid=2)
        .file("cap", b"x", 0o755, uid=3, pax_headers={"SCHILY.xattr.security.capability": capability})
        .file("attr", b"x", pax_headers={"SCHILY.xattr.user.k": "v", "SCHILY.xattr.trusted.t": "w"})
        .device("dev", 1, 3)
        .fifo("fifo")
        .directory("late", 0o700)
        .file("late/file")
    )
    await apply_there(layer.bytes(), bind(tmp_path))
    found = listing(tmp_path)
    assert found["d"][:3] == ("0o42775", 5, 6)
    assert found["d/su"][:3] == ("0o106755", 1, 2)
    assert found["cap"][-1] == {"security.capability": capability.encode()}
    assert found["attr"][-1] == {"user.k": b"v", "trusted.t": b"w"}
    assert found["dev"][3] == os.makedev(1, 3)
    assert found["fifo"][0] == "0o10600"
    assert {os.stat(tmp_path / name).st_mtime for name in ("d", "late", "attr")} == {1_700_000_000}


async def test_attributes_of_overlayfs_in_a_layer_are_dropped(tmp_path: Path) -> None:
    """A layer can't speak to overlayfs past its whiteouts."""
    headers = {
        f"SCHILY.xattr.{kind}.overlay.{name}": "y" for kind in ("trusted", "user") for name in ("opaque", "redirect")
    }
    layer = Layer().directory("d", pax_headers=headers).file("f", pax_headers=headers)
    await apply_there(layer.bytes(), _upper(tmp_path))
    assert [os.listxattr(tmp_path / name) for name in ("d", "f")] == [[], []]


async def test_whiteouts_in_a_plain_tree_remove(tmp_path: Path) -> None:
    """A whiteout removes; an opaque mark removes what the layer itself did not bring, wherever in it it stands."""
    (tmp_path / "d/sub").mkdir(parents=True)
    (tmp_path / "d/old").touch()
    (tmp_path / "d/sub/old").touch()
    (tmp_path / "gone").touch()
    layer = Layer().file(".wh.gone").file("d/sub/new").file("d/new").file("d/.wh..wh..opq").device("d/zero", 0, 0)
    await apply_there(layer.bytes(), bind(tmp_path))
    assert sorted(listing(tmp_path)) == ["d", "d/new", "d/sub", "d/sub/new"]


async def test_whiteouts_in_overlay_form_hide(tmp_path: Path) -> None:
    """In an upper directory whiteouts become overlayfs's own: a container sees what the image means."""
    lower, upper = _made(tmp_path, "lower", "upper")
    for name in ("gone", "d/old", "kept/old", "swapped/old"):
        (lower / name).parent.mkdir(exist_ok=True)
        (lower / name).touch()
    layer = (
        Layer()
        .file(".wh.gone")
        .file("d/.wh..wh..opq")
        .file("d/new")
        .file("kept/new")
        .file(".wh.swapped")
        .directory("swapped")
        .file("swapped/new")
    )
    await apply_there(layer.bytes(), _upper(upper, lower))
    with _seen(upper, lower) as tree:
        assert sorted(listing(tree)) == ["d", "d/new", "kept", "kept/new", "kept/old", "swapped", "swapped/new"]


async def test_a_layer_applied_without_its_parents_still_hides(tmp_path: Path) -> None:
    """An overlay mount without lower directories asks for overlay form: layers may be unpacked in any order."""
    lower, upper, other = _made(tmp_path, "lower", "upper", "other")
    await apply_there(Layer().file(".wh.gone").file("new").bytes(), _upper(upper))
    await apply_there(Layer().file("gone").file("kept").bytes(), _upper(lower))
    with _seen(upper, lower, other) as tree:
        assert sorted(listing(tree)) == ["kept", "new"]


async def test_implied_directories_are_like_those_below(tmp_path: Path) -> None:
    """A directory that no entry describes has the owner, mode and attributes of the layer below."""
    upper, middle, lower = _made(tmp_path, "upper", "middle", "lower")
    (lower / "home/user").mkdir(parents=True)
    os.chown(lower / "home/user", 1000, 1000)
    os.chmod(lower / "home/user", 0o1750)
    os.setxattr(lower / "home/user", "user.k", b"v")
    (middle / "home").mkdir(mode=0o711)
    await apply_there(Layer().file("home/user/file").bytes(), _upper(upper, middle, lower))
    found = listing(upper)
    assert found["home/user"][:3] == ("0o41750", 1000, 1000)
    assert found["home/user"][-1] == {"user.k": b"v"}
    assert found["home"][0] == "0o40711"


async def test_applies_to_what_must_be_mounted(tmp_path: Path) -> None:
    """Mounts other than one bind or overlay are made in a namespace of the worker's own, and seen by nobody else."""
    lower, work = _made(tmp_path, "lower", "work")
    (lower / "gone").touch()
    upper = tmp_path / "upper"
    upper.mkdir()
    stacked = Mount(
        type="overlay", source="overlay", options=(f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}")
    )
    await apply_there(Layer().file(".wh.gone").file("new").bytes(), bind(lower), stacked)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    with _seen(upper, lower) as seen:
        assert sorted(listing(seen)) == ["new"]


async def test_a_full_disk_is_resource_exhausted(tmp_path: Path) -> None:
    """No space left says so, and names the file."""
    with _mounted("tmpfs", "size=1m", tmp_path / "small") as small:
        with pytest.raises(ResourceExhausted, match="big"):
            await apply_there(Layer().file("big", bytes(4 << 20)).bytes(), bind(small))


async def test_missing_and_read_only_trees(tmp_path: Path) -> None:
    """A tree that is not there or may not be written is told apart from a bad layer."""
    archive = Layer().file("f").bytes()
    with pytest.raises(InvalidArgument, match="no mounts"):
        await apply_there(archive)
    with pytest.raises(FailedPrecondition):
        await apply_there(archive, Mount(type="bind", source=str(tmp_path), options=("ro", "rbind")))
    with pytest.raises((NotFound, Internal)):
        await apply_there(archive, bind(tmp_path / "missing"))
    with _mounted("tmpfs", "ro", tmp_path / "fixed") as fixed:
        with pytest.raises(PermissionDenied):
            await apply_there(archive, bind(fixed))


async def test_cancelling_kills_the_worker(tmp_path: Path) -> None:
    """Nothing goes on writing when nobody waits for it."""
    layer = Descriptor(media_type=OCI_LAYER, digest=Digest.of(b""), size=0)
    with blob_of(Layer().file("zeros", bytes(200 << 20)).bytes()) as blob:
        task = asyncio.create_task(apply(blob, layer, [bind(tmp_path)]), name="apply")
        while not await asyncio.to_thread(os.listdir, tmp_path):
            await asyncio.sleep(0.005)
        workers = _workers()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert workers
    await asyncio.sleep(0.05)
    assert _workers() == []


async def test_cancelling_at_once_leaves_no_worker(tmp_path: Path) -> None:
    """A worker that is being started when nobody waits any more is killed as well."""
    layer = Descriptor(media_type=OCI_LAYER, digest=Digest.of(b""), size=0)
    for number in range(10):
        with blob_of(b"") as blob:
            task = asyncio.create_task(apply(blob, layer, [bind(tmp_path)]), name="apply")
            await asyncio.sleep(number / 2000)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await asyncio.to_thread(_workers) == []


async def test_a_killed_worker_is_an_internal_error(tmp_path: Path) -> None:
    """The caller is told when a worker dies, whichever of its two processes it is."""
    layer = Descriptor(media_type=OCI_LAYER, digest=Digest.of(b""), size=0)
    for which in (0, -1):
        with blob_of(Layer().file("zeros", bytes(200 << 20)).bytes()) as blob:
            task = asyncio.create_task(apply(blob, layer, [bind(tmp_path)]), name="apply")
            while len(await asyncio.to_thread(_workers)) < 2:
                await asyncio.sleep(0.005)
            os.kill(_workers()[which], signal.SIGKILL)
            with pytest.raises(Internal, match="worker ended"):
                await task


def _workers() -> list[int]:
    """Processes of ours that apply layers, parents first."""
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            session = os.getsid(pid)
        except OSError:
            continue
        if f"Name:\t{NAME}" in status and "State:\tZ" not in status and _parent(session) == os.getpid():
            found.append(pid)
    return found


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _change(tree: Path) -> None:
    (tree / "a/changed").write_bytes(b"new")
    (tree / "a/gone").unlink()
    subprocess.run(["rm", "-r", str(tree / "dir")], check=True)
    (tree / "dir").write_bytes(b"now a file")
    (tree / "file").unlink()
    (tree / "file").mkdir()
    (tree / "file/in").touch()
    (tree / "link").symlink_to("/nowhere")
    os.mkfifo(tree / "fifo")
    (tree / ("long" * 50)).write_bytes(b"x" * 1000)
    os.link(tree / ("long" * 50), tree / "second name")
    os.setxattr(tree / "a/changed", "user.k", b"v\xff\n")
    os.chown(tree / "a/owned", 3_000_000, 7)
    os.link(tree / "a/twin", tree / "triplet")
    os.chmod(tree / "mode", 0o2711)
    (tree / "é\n").touch()


def _base(tree: Path) -> None:
    (tree / "a").mkdir()
    (tree / "dir/below").mkdir(parents=True)
    (tree / "mode").mkdir()
    for name in ("a/changed", "a/gone", "a/same", "a/owned", "a/twin", "dir/below/x", "file"):
        (tree / name).write_bytes(b"old " + name.encode())


@pytest.mark.parametrize("media_type", ["", OCI_LAYER, OCI_LAYER_ZSTD])
async def test_a_diff_applied_elsewhere_gives_an_equal_tree(tmp_path: Path, media_type: str) -> None:
    """Changes of every kind travel from one copy of a tree to another, and unchanged files stay at home."""
    lower, upper, other = tmp_path / "lower", tmp_path / "upper", tmp_path / "other"
    lower.mkdir()
    _base(lower)
    for copy in (upper, other):
        subprocess.run(["cp", "-a", str(lower), str(copy)], check=True)
    _change(upper)
    with open(tmp_path / "layer", "w+b") as file:
        written = await diff(file.fileno(), [bind(lower)], [bind(upper)], media_type=media_type)
        data = (tmp_path / "layer").read_bytes()
        assert (written.digest, written.size) == (Digest.of(data), len(data))
        layer = Descriptor(media_type=media_type or OCI_LAYER_GZIP, digest=written.digest, size=written.size)
        applied = await apply(file.fileno(), layer, [bind(other)])
    assert applied.digest == written.uncompressed
    assert listing(other) == listing(upper)
    if media_type == OCI_LAYER:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            assert "a/same" not in tar.getnames()


async def test_diffs_are_reproducible(tmp_path: Path) -> None:
    """Equal changes give equal bytes, and no time in them is later than the one asked for."""
    (empty,) = _made(tmp_path, "empty")
    layers = []
    for copy in ("one", "two"):
        tree = tmp_path / copy
        tree.mkdir()
        for name in "zyx" if copy == "one" else "xyz":
            (tree / name).write_bytes(name.encode())
        with open(tmp_path / f"{copy}.layer", "wb") as file:
            await diff(file.fileno(), [bind(empty)], [bind(tree)], source_date_epoch=datetime(2020, 1, 1, tzinfo=UTC))
        layers.append((tmp_path / f"{copy}.layer").read_bytes())
    assert layers[0] == layers[1]
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layers[0]))) as tar:
        assert {member.mtime for member in tar} == {datetime(2020, 1, 1, tzinfo=UTC).timestamp()}


async def test_diffs_of_overlay_mounts(tmp_path: Path) -> None:
    """The layer of a container's changes, as a snapshotter's mounts name them, has its whiteouts."""
    lower, upper, _ = _made(tmp_path, "lower", "upper", "upper.work")
    _base(lower)
    with _mounted("overlay", ",".join(_upper(upper, lower).options), tmp_path / "tree") as tree:
        _change(tree)
        expected = listing(tree)
    with open(tmp_path / "layer", "w+b") as file:
        written = await diff(file.fileno(), [bind(lower)], [_upper(upper, lower)])
        layer = Descriptor(media_type=OCI_LAYER_GZIP, digest=written.digest, size=written.size)
        await apply(file.fileno(), layer, [bind(lower)])
    found = listing(lower)
    assert {name: value[:6] for name, value in found.items()} == {name: value[:6] for name, value in expected.items()}


async def test_the_worker_can_do_little(tmp_path: Path) -> None:
    """While it parses, a worker sees the tree alone, opens no device, and has six capabilities, what it needs, no
    network, and a filter of its system calls."""
    layer = Descriptor(media_type=OCI_LAYER, digest=Digest.of(b""), size=0)
    with blob_of(Layer().file("zeros", bytes(200 << 20)).bytes()) as blob:
        for mount in (bind(tmp_path), _upper(tmp_path)):
            (tmp_path / "zeros").unlink(missing_ok=True)
            task = asyncio.create_task(apply(blob, layer, [mount]), name="apply")
            while not await asyncio.to_thread(os.listdir, tmp_path):
                await asyncio.sleep(0.005)
            child = Path(f"/proc/{_workers()[-1]}")
            status = dict(line.split(":\t", 1) for line in (child / "status").read_text().splitlines())
            flags = os.statvfs(child / "root").f_flag
            same = os.path.samefile(child / "root", tmp_path)
            network = os.readlink(child / "ns/net")
            # Links of /proc/PID/fd, whose files may be closed meanwhile.
            opened = [os.readlink(link) for link in (child / "fd").iterdir() if link.is_symlink()]
            environment = (child / "environ").read_bytes()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            expected = sum(1 << number for number in (0, 1, 3, 4, 27, 31))
            assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {expected}
            assert (status["NoNewPrivs"], status["Seccomp"], same) == ("1", "2", True)
            assert network != os.readlink("/proc/self/ns/net")
            assert flags & os.ST_NODEV
            assert flags & os.ST_NOSUID
            assert sum(link.startswith(("socket:", "pipe:")) for link in opened) == 2, opened
            assert b"=" not in environment.replace(b"LC_CTYPE=", b"")


async def test_a_layer_can_not_take_all_memory(tmp_path: Path) -> None:
    """What has to be remembered of a layer has a limit; beyond it the layer is refused."""
    deep = "/".join("d" * 200 for _ in range(15))
    layer = Layer()
    for number in range(20_000):
        layer.directory(f"{deep}/{number}")
    packed = compressed(layer.bytes())
    with pytest.raises(ResourceExhausted, match="memory"):
        await apply_there(packed, bind(tmp_path), media_type=OCI_LAYER_GZIP, limits=Limits(memory=64 << 20))
