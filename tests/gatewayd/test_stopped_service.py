"""A service behind the gateway that is stopped: who waits for it, how long, and who does not."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from carina import errors
from carina.aio.daemon import Lifetime
from carina.api.carina.plugins.v1 import Backend, ListRequest, ListResponse, PluginsBase
from carina.api.containerd.services.introspection.v1 import IntrospectionStub, PluginsRequest
from carina.api.containerd.services.namespaces.v1 import (
    ListNamespacesRequest,
    ListNamespacesResponse,
    NamespacesBase,
    NamespacesStub,
)
from carina.api.containerd.services.tasks.v1 import GetRequest, ListTasksRequest, TasksStub
from carina.api.containerd.services.version.v1 import VersionStub
from carina.api.google.protobuf import Empty
from carina.api.grpc.health.v1 import HealthCheckRequest, HealthStub
from carina.rpc.client import Channel, connect
from carina.rpc.server import serve
from gatewayd.config import Config
from gatewayd.daemon import serve as serve_gateway
from support.content import directory
from support.snapshots import serving as process

LIMIT = 30.0
TASKD = """
import asyncio, sys
from carina.aio.daemon import run
from carina.api.containerd.services.introspection.v1 import IntrospectionBase, Plugin, PluginsResponse
from carina.api.containerd.services.tasks.v1 import ListTasksResponse, TasksBase
from carina.rpc.server import serve

class Tasks(TasksBase):
    async def get(self, message):
        await asyncio.Event().wait()
    async def list(self, message):
        return ListTasksResponse()

class Introspection(IntrospectionBase):
    async def plugins(self, message):
        return PluginsResponse(plugins=[Plugin(type="io.containerd.runtime.v2", id="task")])

async def main(lifetime):
    async with serve(f"unix://{sys.argv[1]}", [Tasks(), Introspection()], name="taskd", grace=0.1):
        await lifetime.stopped()

run("taskd", main)
"""


class Namespaces(NamespacesBase):
    async def list(self, message: ListNamespacesRequest) -> ListNamespacesResponse:
        return ListNamespacesResponse()


class Plugins(PluginsBase):
    def __init__(self) -> None:
        self.errors = {"overlayfs": "", "theirs": "it hangs"}

    async def list(self, message: ListRequest) -> ListResponse:
        return ListResponse(backends=[Backend(name=name, error=error) for name, error in self.errors.items()])


@asynccontextmanager
async def gateway(path: Path, plugins: Plugins, *, stall: float) -> AsyncIterator[Channel]:
    config = Config(
        root=path / "g",
        address=f"unix://{path}/g.sock",
        metadata=f"unix://{path}/m.sock",
        images=f"unix://{path}/i.sock",
        tasks=f"unix://{path}/t.sock",
        grace=0.2,
        stall_timeout=stall,
    )
    lifetime, ready = Lifetime("gatewayd"), asyncio.Event()
    lifetime.ready = ready.set  # type: ignore[method-assign]
    async with (
        serve(config.metadata, [Namespaces(), plugins], name="metadatad", grace=0.1),
        serve(config.images, [], name="imaged", grace=0.1),
        asyncio.TaskGroup() as group,
    ):
        group.create_task(serve_gateway(config, lifetime))
        await ready.wait()
        channel = connect(config.address)
        try:
            yield channel
        finally:
            channel.close()
            lifetime.stop()


async def until(holds: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(LIMIT):
        while not await holds():
            await asyncio.sleep(0.02)


async def state(channel: Channel, name: str) -> str:
    try:
        return (await HealthStub(channel).check(HealthCheckRequest(service=name))).status.name or ""
    except errors.NotFound:
        return "unknown"


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatewayd.watch.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("gatewayd.watch.UP_SECONDS", 0.1)


@pytest.mark.usefixtures("brisk")
async def test_a_stopped_service_counts_as_dead_after_a_while() -> None:
    """Calls without a deadline that wait for it, and those that come, are Unavailable; when it goes on, they work."""
    with directory() as path, process(path / "t.sock", "-c", TASKD, str(path / "t.sock")) as taskd:
        try:
            async with gateway(path, Plugins(), stall=1.5) as channel:
                tasks = TasksStub(channel)
                await tasks.list(ListTasksRequest())
                waiting = asyncio.create_task(tasks.get(GetRequest()))
                await asyncio.sleep(0)
                os.kill(taskd.pid, signal.SIGSTOP)
                async with asyncio.timeout(LIMIT):
                    with pytest.raises(errors.Unavailable, match="taskd does not answer since"):
                        await waiting
                    for _ in range(3):
                        with pytest.raises(errors.Unavailable, match="taskd does not answer since"):
                            await tasks.list(ListTasksRequest())
                os.kill(taskd.pid, signal.SIGCONT)
                await until(lambda: answers(tasks))
        finally:
            os.kill(taskd.pid, signal.SIGCONT)


async def answers(tasks: TasksStub) -> bool:
    try:
        await tasks.list(ListTasksRequest())
    except errors.Unavailable:
        return False
    return True


@pytest.mark.usefixtures("brisk")
async def test_nothing_else_waits_for_it() -> None:
    """Version, Health, Introspection with its plugins as last known, and other services, while it is stopped."""
    with directory() as path, process(path / "t.sock", "-c", TASKD, str(path / "t.sock")) as taskd:
        try:
            async with gateway(path, Plugins(), stall=0.0) as channel:
                await until(lambda: told(channel, "task", ""))
                os.kill(taskd.pid, signal.SIGSTOP)
                await until(lambda: told(channel, "task", "taskd does not answer since"))
                assert await told(channel, "tasks", "taskd does not answer since")
                assert await told(channel, "version", "")
                assert (await state(channel, "taskd"), await state(channel, "")) == ("NOT_SERVING", "SERVING")
                await VersionStub(channel).version(Empty())
                await NamespacesStub(channel).list(ListNamespacesRequest())
                # Without a limit the gateway adds none of its own: the call is answered when the service goes on.
                waiting = asyncio.create_task(TasksStub(channel).list(ListTasksRequest()))
                await asyncio.sleep(0.2)
                assert not waiting.done()
                os.kill(taskd.pid, signal.SIGCONT)
                async with asyncio.timeout(LIMIT):
                    await waiting
        finally:
            os.kill(taskd.pid, signal.SIGCONT)


async def told(channel: Channel, name: str, error: str) -> bool:
    """Whether a plugin is listed, with this error or without any."""
    found = (await IntrospectionStub(channel).plugins(PluginsRequest(filters=[f"id=={name}"]))).plugins
    messages = [plugin.init_err.message if plugin.init_err else "" for plugin in found]
    return bool(messages) and all(message == error if not error else error in message for message in messages)


@pytest.mark.usefixtures("brisk")
async def test_back_ends_have_names_in_health(tmp_path: Path) -> None:
    """Each as metadatad knows it, a new one too; one that was taken out is unknown again."""
    with directory() as path:
        plugins = Plugins()
        async with gateway(path, plugins, stall=30.0) as channel:
            assert await state(channel, "overlayfs") == "SERVING"
            assert await state(channel, "theirs") == "NOT_SERVING"
            plugins.errors = {"theirs": "", "new": ""}

            async def changed() -> bool:
                return [await state(channel, name) for name in ("overlayfs", "theirs", "new")] == [
                    "unknown",
                    "SERVING",
                    "SERVING",
                ]

            await until(changed)
