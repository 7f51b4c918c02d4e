"""What the types of the client promise: checked by mypy with everything else, run by nobody."""

import asyncio
from pathlib import Path
from typing import assert_type

import carina
from carina.client.container import Completed, Container
from carina.client.process import Process, Task
from carina.client.subscription import Event
from carina.containers import ContainerStore
from carina.content import ContentStore
from carina.images import Image, ImageStore
from carina.oci.options import Options
from carina.snapshots import Snapshotter
from carina.snapshots.directory import DirectorySnapshotter
from carina.tasks import Exit, TaskService
from contentd.store import LocalContentStore


async def services(client: carina.Client) -> None:
    assert_type(client.content, ContentStore)
    assert_type(client.images, ImageStore)
    assert_type(client.containers, ContainerStore)
    assert_type(client.tasks, TaskService)
    assert_type(client.snapshotter("overlayfs"), Snapshotter)


async def overridden(content: LocalContentStore, snapshotter: DirectorySnapshotter) -> None:
    async with carina.Client("unix:///x", content=content, snapshotters={"mine": snapshotter}) as client:
        assert_type(client, carina.Client)


async def embedded() -> None:
    async with carina.embedded(Path("images")) as client:
        assert_type(client, carina.Client)
        assert_type(await client.fetch("busybox"), Image)


async def containers(client: carina.Client, image: Image) -> None:
    assert_type(await client.run(image, ["true"]), Completed)
    async with await client.create_container("id", image, options=Options(env=["A=b"])) as container:
        assert_type(container, Container)
        async with container.task(stdin=True) as task:
            assert_type(task, Task)
            assert_type(task.stdin, asyncio.StreamWriter | None)
            assert_type(task.stdout, asyncio.StreamReader | None)
            async with task.exec(["ps"]) as process:
                assert_type(process, Process)
                assert_type(await process.communicate(), tuple[bytes, bytes])
            assert_type(await task.wait(), Exit)


async def events(client: carina.Client) -> None:
    async with client.subscribe() as subscription:
        async for event in subscription:
            assert_type(event, Event)
    async with client.lease() as lease:
        assert_type(lease, str)
