"""A disk that is full or read-only: a sentence that names what could not be written, and nothing else suffers."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from carina import context
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import NotFound, ResourceExhausted
from carina.images import Image
from carina.leases import Lease
from support.disk import fill
from support.metadata import stores
from support.snapshots import serving

TARGET = Descriptor(media_type="application/vnd.oci.image.index.v1+json", digest=Digest.of(b"1"), size=1)

pytestmark = pytest.mark.root


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


def arguments(service: str, disk: Path, state: Path) -> list[str]:
    return ["-m", service, "--root", str(disk / "root"), "--state", str(state)]


def refused(command: list[str]) -> str:
    """What a service says that does not start."""
    ended = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    return ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("service", ["metadatad", "contentd"])
def test_service_does_not_start_on_a_read_only_disk(disk: Path, tmp_path: Path, service: str) -> None:
    """On a read-only disk a service ends with the path and the reason, and starts again when that is mended."""
    command = arguments(service, disk, tmp_path)
    with serving(tmp_path / f"{service}.sock", *command):
        pass
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    sentence = refused(command)
    assert str(disk / "root" / service) in sentence
    assert "read-only" in sentence
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    with serving(tmp_path / f"{service}.sock", *command):
        pass


def test_metadatad_does_not_start_on_a_full_disk(disk: Path, tmp_path: Path) -> None:
    """On a full disk metadatad ends with the database's path and the reason, and starts when there is space again."""
    command = arguments("metadatad", disk, tmp_path)
    with serving(tmp_path / "metadatad.sock", *command):
        pass
    filling = fill(disk)
    sentence = refused(command)
    assert str(disk / "root" / "metadatad" / "metadata.sqlite") in sentence
    assert "the disk or quota is full" in sentence
    filling.unlink()
    with serving(tmp_path / "metadatad.sock", *command):
        pass


async def test_records_on_a_full_disk(disk: Path) -> None:
    """What can't be stored is refused and leaves nothing; reading goes on, and so does writing when there is space."""
    labels = {str(number): "v" * 4000 for number in range(20)}
    async with stores(disk, "local") as local:
        with context.within(namespace="test"):
            await local.images.create(Image(name="first", target=TARGET))
            filling = fill(disk)
            for number in range(1000):
                last = f"image-{number}"
                try:
                    await local.images.create(Image(name=last, target=TARGET, labels=labels))
                except ResourceExhausted as error:
                    assert "metadata.sqlite can't grow: the disk or quota is full" in str(error)  # noqa: PT017
                    break
            with pytest.raises(NotFound):
                await local.images.get(last)
            assert "first" in [image.name for image in await local.images.list()]
            with pytest.raises(ResourceExhausted):
                await local.images.create(Image(name="again", target=TARGET, labels=labels))
            filling.unlink()
            await local.images.create(Image(name=last, target=TARGET, labels=labels))
            await local.leases.create(Lease(id="l"))
            assert (await local.images.get(last)).labels == labels
