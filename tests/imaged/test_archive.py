"""Images into archives and back."""

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import zstandard

from carina.digest import Digest
from carina.errors import CarinaError, DataLoss, InvalidArgument, NotFound
from carina.platforms import Platform
from carina.transfer import ExtraReference, Store, Unpack
from imaged.tarstream import plain
from support.image import build, busybox_tar, layer, tar
from support.pulls import Hostile, World

HOST = Platform(os="linux", architecture="amd64")
NAMED = Store(
    name="",
    platforms=(HOST,),
    extra_references=(ExtraReference(name="import", is_prefix=True, allow_overwrite=True),),
    unpacks=(Unpack(platform=HOST, snapshotter="native"),),
)


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def archive(files: dict[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def layout(tmp_path: Path, name: str = "1") -> dict[str, bytes | str]:
    directory = build(platforms=("linux/amd64", "linux/arm64")).write(tmp_path / "layout", name)
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["tar", "gzip", "zstd"])
async def test_an_archive_becomes_an_image(world: World, tmp_path: Path, pack: type[bytes]) -> None:
    """An OCI layout, compressed or not, is imported, unpacked and named by the destination's prefix and its own tag."""
    data = pack(archive(layout(tmp_path)))

    await world.transfers().load(chunks(data), NAMED)

    assert list(world.images.images) == ["import:1"]
    assert len(world.snapshotter.snapshots) == 2
    assert world.content.ingests == {}
    assert world.leases.leases == {}


async def test_what_is_exported_is_imported_the_same(world: World, hostile: Hostile) -> None:
    """Export and import bring the same image back under its full name, and the archive is one for docker too."""
    image = build()
    reference = hostile.put(image)
    await world.transfers().pull(reference, platforms=[HOST])

    data = b"".join([chunk async for chunk in world.transfers().save(Store(name=reference))])

    other = World()
    await other.transfers().load(chunks(data), NAMED)
    assert other.images.images[reference].target.digest == image.digest
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        described = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        assert described[0]["RepoTags"] == [reference]
        assert set(described[0]["Layers"]) <= set(tar.getnames())


async def test_skopeo_reads_what_is_exported(world: World, hostile: Hostile, tmp_path: Path) -> None:
    """Another implementation finds the image in the archive."""
    reference = hostile.put(build())
    await world.transfers().pull(reference, platforms=[HOST])
    data = b"".join([chunk async for chunk in world.transfers().save(Store(name=reference))])
    path = tmp_path / "out.tar"
    path.write_bytes(data)

    answer = subprocess.run(["skopeo", "inspect", "--raw", f"oci-archive:{path}"], capture_output=True, check=False)

    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["schemaVersion"] == 2


async def test_what_docker_save_writes_is_imported(world: World) -> None:
    """manifest.json, layers as plain tar, and links from one layer to another."""
    one = layer(busybox_tar(), "")
    config = build(layers=[one, one]).config
    assert config is not None
    manifest = [{"Config": "c.json", "RepoTags": ["example.test/a:1"], "Layers": ["x/layer.tar", "y/layer.tar"]}]
    data = archive(
        {
            "x/layer.tar": one.blob.data,
            "y/layer.tar": "../x/layer.tar",
            "c.json": config.data,
            "manifest.json": json.dumps(manifest).encode(),
        }
    )

    await world.transfers().load(chunks(data), NAMED)

    assert list(world.images.images) == ["example.test/a:1"]
    assert len(world.snapshotter.snapshots) == 2


async def test_an_archive_names_only_what_it_may(world: World, tmp_path: Path) -> None:
    """Without leave to overwrite, a full name outside the prefix is not taken."""
    data = archive(layout(tmp_path, "docker.io/library/nginx:latest"))
    into = Store(name="", platforms=(HOST,), extra_references=(ExtraReference(name="mine.test/x", is_prefix=True),))

    with pytest.raises(InvalidArgument, match="names no image"):
        await world.transfers().load(chunks(data), into)

    assert world.images.images == {}


def both(files: dict[str, bytes | str]) -> dict[str, bytes | str]:
    """The layout with a manifest that is an index as well."""
    index = json.loads(files["index.json"])
    entry = index["manifests"][0]
    document = json.loads(files[f"blobs/sha256/{entry['digest'].removeprefix('sha256:')}"])
    data = json.dumps({"config": {}, "layers": [], "manifests": []} | document).encode()
    digest = Digest.of(data)
    entry |= {"digest": digest, "size": len(data)}
    return {**files, f"blobs/sha256/{digest.hex}": data, "index.json": json.dumps(index).encode()}


async def test_a_document_of_gigabytes_is_refused_by_its_header() -> None:
    """What an archive says that a document has is not waited for, nor kept room for."""
    for name in ("oci-layout", "index.json", "manifest.json"):
        info = tarfile.TarInfo(name)
        info.size = 10 << 30
        world = World()
        with pytest.raises(InvalidArgument):
            await world.transfers().load(chunks(info.tobuf(tarfile.GNU_FORMAT) + bytes(100_000)), NAMED)
        assert world.images.images == {}


async def test_archives_that_lie_are_refused(tmp_path: Path) -> None:
    """Wrong bytes, an early end, oversized documents, missing content and plain rubbish each end in an error."""
    files = layout(tmp_path)
    blob = max((name for name in files if name.startswith("blobs/")), key=lambda name: len(files[name]))
    whole = archive(files)
    cases: list[tuple[bytes, type[CarinaError]]] = [
        (archive({**files, blob: bytes(len(files[blob]))}), DataLoss),
        (archive({**files, "blobs/sha256/../../etc/passwd": b"x", "blobs/sha256/zz": b"x"}), InvalidArgument),
        (whole[: len(whole) // 2], InvalidArgument),
        (archive({**files, "index.json": b" " * (5 << 20)}), InvalidArgument),
        (archive({name: content for name, content in files.items() if name != blob}), NotFound),
        (archive({**files, "oci-layout": b" " * (5 << 20)}), InvalidArgument),
        (archive({**files, "manifest.json": b" " * (5 << 20)}), InvalidArgument),
        (archive(both(files)), InvalidArgument),
        (archive({"a": b"b"}), InvalidArgument),
        (archive({**files, "n" * 5000: b"x"}), InvalidArgument),
        (b"rubbish" * 1000, InvalidArgument),
        (gzip.compress(whole)[:5000] + b"rubbish" * 100, InvalidArgument),
    ]

    for data, error in cases:
        world = World()
        with pytest.raises(error):
            await world.transfers().load(chunks(data, 65536), NAMED)
        assert world.images.images == {}
        assert world.content.ingests == {}


async def test_an_image_that_is_not_there_is_not_exported(world: World) -> None:
    """Exporting says NotFound before it writes anything."""
    with pytest.raises(NotFound):
        await anext(aiter(world.transfers().save(Store(name="nothing:1"))))


async def test_layers_of_docker_save_are_compressed_where_asked(world: World) -> None:
    """With `compress`, what is stored is gzip, unpacks to the same, and the plain layer is not part of the image."""
    one = layer(busybox_tar(), "")
    config = build(layers=[one]).config
    assert config is not None
    manifest = [{"Config": "c.json", "RepoTags": ["busybox:1"], "Layers": ["x/layer.tar"]}]
    data = archive(
        {"x/layer.tar": one.blob.data, "c.json": config.data, "manifest.json": json.dumps(manifest).encode()}
    )

    await world.transfers().load(chunks(data, 50_000), NAMED, compress=True)

    target = world.images.images["docker.io/library/busybox:1"].target
    (stored,) = json.loads(world.content.blobs[target.digest])["layers"]
    assert stored["mediaType"] == "application/vnd.docker.image.rootfs.diff.tar.gzip"
    assert gzip.decompress(world.content.blobs[stored["digest"]]) == one.blob.data
    assert len(world.snapshotter.snapshots) == 1


async def test_a_zstd_archive_is_undone_in_small_pieces() -> None:
    """However much a few bytes become, no piece of it is large; what follows a frame is read too."""
    small = zstandard.compress(bytes(200 << 20)) + zstandard.compress(b"end")

    sizes, last = [], b""
    async with aclosing(plain(chunks(small, 5000))) as pieces:
        async for piece in pieces:
            sizes.append(len(piece))
            last = piece

    assert sum(sizes) == (200 << 20) + 3
    assert max(sizes) <= 1 << 18
    assert last.endswith(b"end")


async def test_an_export_leaves_out_what_is_not_wanted(world: World) -> None:
    """Without `docker` there is no manifest.json; without `foreign` no layer that may not be redistributed."""
    foreign = layer(tar({"f": b"1"}), media_type="application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")
    image = build(layers=[foreign, layer(tar({"g": b"2"}))])
    world.put("image", image)

    data = b"".join([c async for c in world.transfers().save(Store(name="image"), docker=False, foreign=False)])

    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        names = opened.getnames()
    assert "manifest.json" not in names
    assert f"blobs/sha256/{foreign.blob.digest.partition(':')[2]}" not in names
    assert f"blobs/sha256/{image.layers[1].blob.digest.partition(':')[2]}" in names


async def test_umoci_reads_what_is_exported(world: World, tmp_path: Path) -> None:
    """An exported layout, unpacked, lists its tag in umoci, and has the same digests in skopeo."""
    image = build(layers=[layer(tar({"f": b"1"}))])
    world.put("example.test/a:7", image)
    data = b"".join([chunk async for chunk in world.transfers().save(Store(name="example.test/a:7"))])
    (tmp_path / "layout").mkdir()
    subprocess.run(["tar", "-x", "-C", tmp_path / "layout"], input=data, check=True)

    listed = subprocess.run(["umoci", "ls", "--layout", tmp_path / "layout"], capture_output=True, check=True)
    raw = subprocess.run(["skopeo", "inspect", "--raw", f"oci:{tmp_path}/layout:7"], capture_output=True, check=True)

    assert listed.stdout.split() == [b"7"]
    assert raw.stdout == image.root.data
