"""Much at once: everything is answered, once, and nothing is left.

`CARINA_LOAD=full` takes the numbers that an installation may have; the short form is a part of the suite.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from carina import context
from carina.client import Client
from carina.client.run import Wish, create, remove, rootfs
from carina.content.client import RemoteContentStore
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import CarinaError
from carina.events import Envelope
from carina.gc.client import RemoteCollector
from carina.images import Image
from carina.oci import spec as oci
from carina.platforms import host
from carina.typed import TypedValue
from support import image
from support.constellation import Constellation
from support.link import link
from support.registry import Registry

pytestmark = [pytest.mark.system, pytest.mark.timeout(3600)]
FULL = os.environ.get("CARINA_LOAD") == "full"
CONTAINERS, ABREAST = (500, 32) if FULL else (16, 8)
IMAGES = 10_000 if FULL else 300
BLOBS = 100_000 if FULL else 600
WAITS, SUBSCRIBERS = (1000, 200) if FULL else (100, 40)
PULLS = 50
CHURN = 1000 if FULL else 20
ROOT = {"containerd.io/gc.root": "load"}


async def each(some: Iterable[int], work: Callable[[int], Awaitable[None]], *, abreast: int) -> None:
    room = asyncio.Semaphore(abreast)

    async def one(number: int) -> None:
        async with room:
            await work(number)

    async with asyncio.TaskGroup() as group:
        for number in some:
            group.create_task(one(number), name=f"load {number}")


@contextlib.asynccontextmanager
async def client_of(constellation: Constellation) -> AsyncIterator[Client]:
    async with Client(constellation.address) as client:
        with context.within(namespace=constellation.namespace):
            yield client


async def pulled_by(client: Client, registry: Registry) -> Image:
    reference = await asyncio.to_thread(registry.push, "load/busybox", "1", image.build())
    await client.transfer.pull(reference, platforms=[host()], unpack=[(host(), "overlayfs")], plain_http=True)
    return await client.images.get(reference)


async def live(client: Client, own: Image, id: str, status: int) -> None:
    """A container's whole life."""
    wish = Wish(id=id, runtime="io.containerd.carina.v1", options=oci.Options(args=("sh", "-c", f"exit {status}")))
    container = await create(client, own, wish)
    await client.tasks.create(id, rootfs=await rootfs(client, container))
    await client.tasks.start(id)
    assert (await client.tasks.wait(id)).status == status
    await client.tasks.delete(id)
    await remove(client, container)


def memory_of(pids: Iterable[int]) -> int:
    """Resident bytes (proc_pid_statm(5))."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * os.sysconf("SC_PAGESIZE")


def services(constellation: Constellation) -> list[int]:
    pid = constellation.supervisor.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_containers_by_the_dozen(constellation: Constellation, registry: Registry) -> None:
    """Many lives side by side, and many one after the other: each ends as it should, and memory stays flat."""
    async with client_of(constellation) as client:
        own = await pulled_by(client, registry)
        await each(range(CONTAINERS), lambda n: live(client, own, f"many{n}", n % 100), abreast=ABREAST)
        before = memory_of(services(constellation))
        await each(range(CHURN), lambda n: live(client, own, f"churn{n}", n % 100), abreast=1)
        assert memory_of(services(constellation)) < before + (64 << 20)
        assert await client.tasks.list() == []


async def test_images_and_blobs_in_numbers(constellation: Constellation) -> None:
    """Thousands of records are written, listed, and collected when nothing keeps them."""
    async with client_of(constellation) as client:

        async def blob(number: int) -> None:
            data = f"blob {number}".encode()
            async with await client.content.writer(f"load-{number}", total=len(data)) as writer:
                await writer.write(data)
                await writer.commit(expected=Digest.of(data), labels=ROOT)

        async def record(number: int) -> None:
            data = f"blob {number % BLOBS}".encode()
            target = Descriptor(media_type="application/octet-stream", digest=Digest.of(data), size=len(data))
            await client.images.create(Image(name=f"load.example/{number}:1", target=target))

        await each(range(BLOBS), blob, abreast=32)
        await each(range(IMAGES), record, abreast=32)
        assert len([info async for info in client.content.walk()]) >= BLOBS
        assert len(await client.images.list(["name~=^load.example/"])) == IMAGES

        async def forget(number: int) -> None:
            await client.images.delete(f"load.example/{number}:1")

        async def drop(number: int) -> None:
            await client.content.delete(Digest.of(f"blob {number}".encode()))

        await each(range(IMAGES), forget, abreast=32)
        await each(range(BLOBS), drop, abreast=32)
        await RemoteCollector(client.channel).run(sync=True)
        assert await client.images.list(["name~=^load.example/"]) == []


async def test_waits_and_subscribers(constellation: Constellation, registry: Registry) -> None:
    """A thousand who wait for one container are all told its end, and every subscriber of events has each once."""
    async with client_of(constellation) as client:
        own = await pulled_by(client, registry)
        wish = Wish(
            id="awaited", options=oci.Options(args=("sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done"))
        )
        container = await create(client, own, wish)
        await client.tasks.create("awaited", rootfs=await rootfs(client, container))
        await client.tasks.start("awaited")
        ready = asyncio.Semaphore(0)

        async def subscribe() -> list[str]:
            topics: list[str] = []
            with context.no_deadline():
                async for entry in client.event_log.read():
                    if entry.envelope is None:
                        ready.release()
                    elif entry.envelope.topic.startswith("/load/"):
                        topics.append(entry.envelope.topic)
                        if entry.envelope.topic == "/load/last":
                            break
            return topics

        async with asyncio.TaskGroup() as group:
            readers = [group.create_task(subscribe(), name="subscriber") for _ in range(SUBSCRIBERS)]
            waits = [group.create_task(client.tasks.wait("awaited"), name="wait") for _ in range(WAITS)]
            for _ in readers:
                await ready.acquire()
            topics = [f"/load/{number}" for number in range(50)] + ["/load/last"]
            for topic in topics:
                event = TypedValue(type_url="load", value=b"x")
                moment = datetime.now(UTC)
                envelope = Envelope(timestamp=moment, namespace=constellation.namespace, topic=topic, event=event)
                await client.events.forward(envelope)
            await client.tasks.kill("awaited", 15)
        assert [task.result() for task in readers] == [topics] * SUBSCRIBERS
        assert [task.result().status for task in waits] == [3] * WAITS
        await client.tasks.delete("awaited")
        await remove(client, container)


async def test_one_download_for_many_pulls(constellation: Constellation, registry: Registry) -> None:
    """Fifty pulls of the same image at once fetch it once, and all succeed."""
    layer = image.layer(image.tar({"noise": os.urandom(3_000_000)}))
    await asyncio.to_thread(registry.push, "load/noise", "1", image.build(layers=[layer]))
    async with link(registry.port) as far, client_of(constellation) as client:
        reference = f"localhost:{far.port}/load/noise:1"
        async with asyncio.TaskGroup() as group:
            for number in range(PULLS):
                pull = client.transfer.pull(reference, platforms=[host()], plain_http=True)
                group.create_task(pull, name=f"pull {number}")
        assert (await client.images.get(reference)).name == reference
        assert far.received < 2 * layer.blob.size


async def test_a_flood_starves_nobody(constellation: Constellation) -> None:
    """While one client has hundreds of calls under way at all times, the calls of another are answered."""
    async with client_of(constellation) as loud, client_of(constellation) as calm:
        over = asyncio.Event()
        flooded = 0

        async def flood() -> None:
            nonlocal flooded
            while not over.is_set():
                await loud.images.list()
                flooded += 1

        slowest = 0.0
        async with asyncio.TaskGroup() as group:
            for number in range(300):
                group.create_task(flood(), name=f"flood {number}")
            for _ in range(20):
                begun = time.monotonic()
                with context.deadline(30):
                    await calm.leases.list()
                slowest = max(slowest, time.monotonic() - begun)
                await asyncio.sleep(0.05)
            over.set()
        assert flooded > 300
        assert slowest < 15


async def test_more_streams_than_a_connection_takes(constellation: Constellation) -> None:
    """Calls beyond what one connection carries wait their turn or are refused; none is forgotten, and others go on."""
    async with client_of(constellation) as client:
        answered = refused = 0

        async def ask(number: int) -> None:
            nonlocal answered, refused
            try:
                with context.deadline(60):
                    await client.leases.list()
            except CarinaError:
                refused += 1
            else:
                answered += 1

        number = 5000 if FULL else 1500
        await each(range(number), ask, abreast=number)
        assert answered + refused == number
        assert answered > 0
        assert isinstance(client.content, RemoteContentStore)
        await client.leases.list()
