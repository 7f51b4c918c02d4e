"""A world whose task service is a real containerd's, running containers on our shim."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

from carina.containers.client import RemoteContainerStore
from carina.errors import AlreadyExists
from carina.events.client import RemoteEventService
from carina.rpc.client import Channel, connect
from carina.tasks.client import RemoteTaskService
from support.content import containerd
from support.tasks import OWN, World


class ForeignTasks(RemoteTaskService):
    """containerd's, which is given a record of the world's before its task is created."""

    def __init__(self, channel: Channel, made: World) -> None:
        super().__init__(channel)
        self._made, self._store = made, RemoteContainerStore(channel)

    async def create(self, container_id: str, **arguments: Any) -> int:
        record = self._made.containers.records.get(container_id)
        if record is not None:
            with contextlib.suppress(AlreadyExists):
                await self._store.create(record)
        return await super().create(container_id, **arguments)


@contextlib.contextmanager
def _on_path() -> Iterator[None]:
    """Where containerd finds our shim."""
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{os.path.dirname(sys.executable)}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


@contextlib.asynccontextmanager
async def foreign(made: World) -> AsyncIterator[None]:
    """Tasks of `made` by a containerd that runs in the world's directory."""
    made.runtime = OWN
    with _on_path():
        manager = containerd(made.directory)
        address = await asyncio.to_thread(manager.__enter__)
    try:
        channel = connect(address)
        made.tasks = ForeignTasks(channel, made)
        made.address = address.removeprefix("unix://")

        async def follow() -> None:
            async for event in RemoteEventService(channel).subscribe([f"namespace=={made.namespace}"]):
                if event.topic.startswith("/tasks/"):
                    made.events.seen.append(event)

        following = asyncio.create_task(follow(), name="events of containerd")
        try:
            await asyncio.sleep(0.1)
            yield
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            channel.close()
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)
