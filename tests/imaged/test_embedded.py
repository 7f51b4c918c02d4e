"""Images without a daemon: a directory, the command line, and the library."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from carina.client import Client
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import AlreadyExists, FailedPrecondition, NotFound
from carina.images import Image
from carina.images.layout import LayoutImages
from carina.transfer import Store, Unpack
from contentd.store import LocalContentStore
from support.image import build, layer, tar
from support.registry import Registry

CARINA = Path(sys.executable).parent / "carina"


def carina(directory: Path, *arguments: str, check: bool = True) -> str:
    done = subprocess.run(
        [CARINA, "--embedded", directory, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert not check or done.returncode == 0, done.stderr
    return done.stdout if done.returncode == 0 else done.stderr


def test_the_command_line_works_on_a_directory(registry: Registry, tmp_path: Path) -> None:
    """Pull, list, tag, convert, push, export and import need no service; what does says so."""
    made = build(layers=[layer(tar({"f": b"1"}))], platforms=("linux/amd64", "linux/arm64"))
    reference, images = registry.push("embedded", "1", made), tmp_path / "images"

    carina(images, "pull", "-q", "--all-platforms", reference)
    assert made.digest in carina(images, "images", "ls")
    carina(images, "images", "tag", reference, "example.test/tagged:9")
    carina(images, "images", "convert", "--zstd", reference, "example.test/zstd:10")
    assert "complete (2/2)" in carina(images, "images", "check")
    carina(images, "push", "-q", reference, registry.reference("embedded/pushed"))
    carina(images, "export", "--all-platforms", str(tmp_path / "image.tar"), reference)
    assert carina(tmp_path / "other", "import", "-q", str(tmp_path / "image.tar")).split() == [reference]
    assert "takes a running constellation" in carina(images, "tasks", "ls", check=False)

    for source, expected in ((f"oci:{images}:9", made.digest), (f"oci:{images}:10", "")):
        read = subprocess.run(["skopeo", "inspect", "--raw", source], capture_output=True, check=True)
        assert not expected or read.stdout == made.root.data


async def test_the_library_fetches_without_a_daemon(registry: Registry, tmp_path: Path) -> None:
    """A client on stores of its own pulls into them; unpacking and services are refused in one sentence."""
    made = build(layers=[layer(tar({"f": b"1"}))])
    reference = registry.push("library", "1", made)

    async with (
        LocalContentStore(tmp_path) as content,
        Client(content=content, images=LayoutImages(tmp_path)) as client,
    ):
        await client.transfer.pull(reference)
        image = await client.images.get(reference)
        with pytest.raises(FailedPrecondition, match="there is no constellation"):
            await client.transfer.fetch(reference, Store(name="x", unpacks=(Unpack(snapshotter="overlayfs"),)))
        with pytest.raises(FailedPrecondition, match="takes a running constellation"):
            await client.namespaces.list()

    assert image.target.digest == made.digest
    layout = json.loads((tmp_path / "index.json").read_text())
    assert [entry["digest"] for entry in layout["manifests"]] == [made.digest]


async def test_records_of_a_directory(tmp_path: Path) -> None:
    """Created, changed, found and removed as in any image store, and there for the next process."""
    target = _descriptor()
    images = LayoutImages(tmp_path)

    await images.create(Image(name="example.test/a:1", target=target, labels={"k": "v"}))
    with pytest.raises(AlreadyExists):
        await images.create(Image(name="example.test/a:1", target=target))
    await images.update(Image(name="example.test/a:1", target=target, labels={"l": "w"}), ["labels.l"])

    again = LayoutImages(tmp_path)
    assert (await again.get("example.test/a:1")).labels == {"k": "v", "l": "w"}
    assert [image.name for image in await again.list(["labels.l==w"])] == ["example.test/a:1"]
    await again.delete("example.test/a:1")
    with pytest.raises(NotFound):
        await again.delete("example.test/a:1")
    assert await images.list() == []


def _descriptor() -> Descriptor:
    return Descriptor(media_type="application/vnd.oci.image.manifest.v1+json", digest=Digest.of(b"x"), size=1)
