"""imaged killed at every fault point of a pull or import: the next one succeeds, and nothing is left of either."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from carina import context
from carina.errors import CarinaError
from carina.platforms import Platform
from carina.rpc.client import connect
from carina.snapshots import Kind
from carina.transfer import ExtraReference, Store, Unpack
from carina.transfer.client import RemoteTransfer
from support import scratch
from support.content import directory
from support.forked import Nursery
from support.image import Image, build, layer, tar
from support.points import points
from support.registry import Registry
from support.started import STORES, started
from support.workload import ROOT, Clients, clients, differences, until_answered

pytestmark = pytest.mark.root
POINTS = [point for point in points() if point.startswith("imaged.")]
PLATFORM = Platform(os="linux", architecture="amd64")
INTO = Store(
    name="",
    platforms=(PLATFORM,),
    extra_references=(ExtraReference(name="import", is_prefix=True, allow_overwrite=True),),
    unpacks=(Unpack(platform=PLATFORM, snapshotter="native"),),
)


def image() -> Image:
    return build(layers=[layer(tar({f"file-{number}": b"x" * 1000})) for number in range(2)])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry.push("small", "1", image())


def archive(scratch: Path) -> bytes:
    folder = image().write(scratch / "layout", "1")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return tar({**files})


async def transfer(state: Path, reference: str, data: bytes) -> None:
    """Pull a reference, or import an archive where there is none."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 1000):
            yield data[start : start + 1000]

    channel = connect(f"unix://{state}/imaged.sock")
    try:
        with context.within(namespace="one"):
            if reference:
                await RemoteTransfer(channel).fetch(reference, replace(INTO, name=reference, extra_references=()))
            else:
                await RemoteTransfer(channel).load(chunks(), INTO)
    finally:
        channel.close()


async def remains(root: Path, state: Path) -> list[str]:
    """What is there after the image and the leases of imports that were cut off have gone."""
    async with clients(state) as own:
        [image] = await own.images.list()
        await until_answered(lambda: _usable(own))
        await own.images.delete(image.name)
        for lease in await own.leases.list():
            await own.leases.delete(lease.id)
        left = await differences(own, root)
        left += [str(info.digest) async for info in own.content.walk()]
        return left + [info.name async for info in own.snapshotter.walk()]


async def _usable(own: Clients) -> None:
    """The unpacked image can be run: its topmost snapshot has both layers."""
    [top] = await own.images.list()
    names = {info.name: info.parent async for info in own.snapshotter.walk() if info.kind is Kind.COMMITTED}
    [highest] = set(names) - set(names.values())
    mounts = await own.snapshotter.view("look", highest, ROOT)
    assert {path.name for path in Path(mounts[0].source).iterdir()} == {"file-0", "file-1"}, top
    await own.snapshotter.remove("look")


@pytest.mark.parametrize("point", POINTS)
def test_killed_in_a_transfer(nursery: Nursery, reference: str, tmp_path: Path, point: str) -> None:
    """The image is there after the next transfer, and goes with everything that the first one had made."""
    data = archive(tmp_path)
    name = "" if point.startswith("imaged.archive.") else reference
    with directory(scratch.parent()) as base:
        with started(nursery, base / "root", base, *STORES, "imaged", faults={"imaged": point}) as services:
            with contextlib.suppress(CarinaError):
                asyncio.run(transfer(base, name, data))
            assert services.running["imaged"].wait() == -signal.SIGKILL, f"{point} is never reached"
            assert services.start("imaged").ready()
            asyncio.run(transfer(base, name, data))

            assert asyncio.run(remains(base / "root", base)) == []
