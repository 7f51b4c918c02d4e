"""Very many records and very large ones: they work or are refused with a sentence, and cost only themselves.

With CARINA_LARGE=1 in the environment the numbers are those of a node that somebody misuses for years.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from carina import context
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import InvalidArgument, ResourceExhausted
from carina.images import Image
from carina.leases import Lease, Resource
from carina.namespaces import Namespace
from carina.rpc.client import connect
from support.content import directory
from support.metadata import Services, services
from support.snapshots import serving

LARGE = bool(os.environ.get("CARINA_LARGE"))
LEASES = 100_000 if LARGE else 1_500
IMAGES, LABELS = (10_000, 100) if LARGE else (60, 100)
ON_ONE = 100_000 if LARGE else 5_000
TARGET = Descriptor(media_type="application/vnd.oci.image.index.v1+json", digest=Digest.of(b"1"), size=1)


@dataclass
class Service:
    """metadatad in a process of its own."""

    stores: Services
    pid: int

    def memory(self) -> int:
        """MiB of the process."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) // 1024

    @asynccontextmanager
    async def watched(self, what: str) -> AsyncIterator[None]:
        """Other calls are answered during the block; what it took is shown where the numbers are large."""
        over, waited = asyncio.Event(), [0.0]

        async def others() -> None:
            while not over.is_set():
                start = time.monotonic()
                async with asyncio.timeout(30):
                    await self.stores.namespaces.get("other")
                waited.append(time.monotonic() - start)
                await asyncio.sleep(0.005)

        start = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(others(), name="others")
            try:
                yield
            finally:
                over.set()
        seconds = time.monotonic() - start
        memory = await asyncio.to_thread(self.memory)
        print(f"{what}: {seconds:.2f} s, other calls {max(waited) * 1000:.0f} ms at most, {memory} MiB")


@pytest.fixture
def process() -> Iterator[tuple[str, int]]:
    with directory() as path:
        arguments = ["-m", "metadatad", "--root", str(path / "root"), "--state", str(path)]
        with serving(path / "metadatad.sock", *arguments) as running:
            yield f"unix://{path}/metadatad.sock", running.pid


@pytest.fixture
async def service(process: tuple[str, int]) -> AsyncIterator[Service]:
    address, pid = process
    channel = connect(address)
    with context.within(namespace="many"):
        yield Service(stores=services(channel), pid=pid)
    channel.close()


async def each(numbers: range, work: object) -> None:
    """Sixteen at once."""
    waiting = iter(numbers)

    async def some() -> None:
        for number in waiting:
            await work(number)  # type: ignore[operator]

    async with asyncio.TaskGroup() as tasks:
        for worker in range(16):
            tasks.create_task(some(), name=f"worker {worker}")


async def test_many_leases(service: Service) -> None:
    """Very many leases are made, listed, filtered, and go with one deletion of their namespace."""
    leases = service.stores.leases
    resource = Resource(type="content", id=Digest.of(b"1"))

    async def make(number: int) -> None:
        await leases.create(Lease(id=f"lease-{number}", labels={"containerd.io/gc.expire": "2099-01-01T00:00:00Z"}))
        if number % 10 == 0:
            await leases.add_resource(f"lease-{number}", resource)

    async with service.watched(f"{LEASES} leases made"):
        await each(range(LEASES), make)
    async with service.watched("all listed"):
        assert len(await leases.list()) == LEASES
    async with service.watched("one looked up"):
        assert [lease.id for lease in await leases.list(["id==lease-7"])] == ["lease-7"]
    async with service.watched("filtered"):
        assert len(await leases.list(["id~=^lease-1.*7$"])) == len(
            [number for number in range(LEASES) if (text := str(number))[0] == "1" and text[1:].endswith("7")]
        )
    async with service.watched("namespace deleted"):
        await service.stores.namespaces.delete("many")
    assert await leases.list() == []


async def test_many_labels(service: Service) -> None:
    """Very many labels on many images: they are filtered; a list larger than a message is refused with its size."""
    images = service.stores.images

    async def make(number: int) -> None:
        labels = {f"label-{label}": f"value-{number}-{label}" for label in range(LABELS)}
        await images.create(Image(name=f"image-{number}", target=TARGET, labels=labels))

    async with service.watched(f"{IMAGES * LABELS} labels made"):
        await each(range(IMAGES), make)
    async with service.watched("filtered"):
        found = await images.list([f'labels."label-{LABELS - 1}"==value-7-{LABELS - 1}'])
    assert [image.name for image in found] == ["image-7"]
    async with service.watched("all listed"):
        try:
            assert len(await images.list()) == IMAGES
        except ResourceExhausted as error:
            assert "larger than max" in str(error)  # noqa: PT017
            assert IMAGES * LABELS * 30 > 16 << 20
    async with service.watched("one updated"):
        await images.update(Image(name="image-7", target=TARGET, labels={"x": "y"}), ["labels.x"])
    assert len((await images.get("image-7")).labels) == LABELS + 1


async def test_many_labels_on_one(service: Service) -> None:
    """One object may have as many labels as a message holds; more are refused, and nothing is stored of them."""
    images = service.stores.images
    labels = {f"label-{label}": f"value-{label}" for label in range(ON_ONE)}
    async with service.watched(f"{ON_ONE} labels on one image"):
        await images.create(Image(name="image", target=TARGET, labels=labels))
        assert (await images.get("image")).labels == labels
        await images.update(Image(name="image", target=TARGET, labels={"x": "y"}), ["labels.x"])
        assert len((await images.get("image")).labels) == ON_ONE + 1
    async with service.watched("17 MiB of labels"):
        with pytest.raises(ResourceExhausted, match="larger than max"):
            await images.create(
                Image(name="too large", target=TARGET, labels={f"{label}": "v" * 4000 for label in range(4_400)})
            )
    assert [image.name for image in await images.list()] == ["image"]


async def test_long_names(service: Service) -> None:
    """Names up to 4,096 bytes work; longer ones are refused with a sentence that shows how they begin."""
    stores = service.stores
    long, longer = "x" * 4096, "y" * 5000
    await stores.images.create(Image(name=long, target=TARGET))
    assert (await stores.images.get(long)).name == long
    await stores.leases.create(Lease(id=long))
    assert [lease.id for lease in await stores.leases.list([f"id=={long}"])] == [long]
    for attempt in (
        lambda: stores.images.create(Image(name=longer, target=TARGET)),
        lambda: stores.leases.create(Lease(id=longer)),
        lambda: stores.leases.add_resource(long, Resource(type="images", id=longer)),
        lambda: stores.namespaces.create(Namespace(name=longer)),
    ):
        with pytest.raises(InvalidArgument, match="yyyy") as raised:
            await attempt()
        assert len(str(raised.value)) < 300
