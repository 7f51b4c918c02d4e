"""The gateway before real sockets: routing, introspection, health, and clients of three kinds."""

import asyncio
import contextlib
import os
import re
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from carina import errors
from carina.aio.daemon import Lifetime
from carina.api.containerd.services.containers.v1 import ContainersStub, GetContainerRequest
from carina.api.containerd.services.diff.v1 import ApplyRequest, DiffStub
from carina.api.containerd.services.introspection.v1 import (
    IntrospectionBase,
    IntrospectionStub,
    Plugin,
    PluginInfoRequest,
    PluginInfoResponse,
    PluginsRequest,
    PluginsResponse,
)
from carina.api.containerd.services.mounts.v1 import ActivateRequest, MountsStub
from carina.api.containerd.services.namespaces.v1 import (
    GetNamespaceRequest,
    GetNamespaceResponse,
    ListNamespacesRequest,
    ListNamespacesResponse,
    Namespace,
    NamespacesBase,
    NamespacesStub,
)
from carina.api.containerd.services.tasks.v1 import GetRequest, TasksStub
from carina.api.google.protobuf import Empty
from carina.api.grpc.health.v1 import HealthCheckRequest, HealthStub
from carina.config import Config as Constellation
from carina.rpc.client import Channel, connect
from carina.rpc.server import serve
from gatewayd import routes
from gatewayd.config import Config, read
from gatewayd.daemon import serve as serve_gateway
from gatewayd.instance import identity


class Namespaces(NamespacesBase):
    async def list(self, message: ListNamespacesRequest) -> ListNamespacesResponse:
        return ListNamespacesResponse(namespaces=[Namespace(name="moby")])

    async def get(self, message: GetNamespaceRequest) -> GetNamespaceResponse:
        return GetNamespaceResponse(namespace=Namespace(name=message.name))


class Introspection(IntrospectionBase):
    def __init__(self, *plugins: tuple[str, str], delay: float = 0.0) -> None:
        self._plugins = [Plugin(type=kind, id=name) for kind, name in plugins]
        self._delay = delay

    async def plugins(self, message: PluginsRequest) -> PluginsResponse:
        await asyncio.sleep(self._delay)
        return PluginsResponse(plugins=list(self._plugins))

    async def plugin_info(self, message: PluginInfoRequest) -> PluginInfoResponse:
        return PluginInfoResponse(plugin=Plugin(type=message.type, id=message.id))


METADATA = [
    Namespaces(),
    Introspection(("io.containerd.content.v1", "content"), ("io.containerd.event.v1", "exchange")),
]
IMAGES = [Introspection(("io.containerd.transfer.v1", "local"))]
TASKS = [Introspection(("io.containerd.runtime.v2", "task"))]


def _config(directory: Path) -> Config:
    return Config(
        root=directory / "gatewayd",
        address=f"unix://{directory}/carina.sock",
        metadata=f"unix://{directory}/metadatad.sock",
        images=f"unix://{directory}/imaged.sock",
        tasks=f"unix://{directory}/taskd.sock",
        grace=0.2,
    )


@contextlib.asynccontextmanager
async def _gateway(config: Config) -> AsyncIterator[Channel]:
    lifetime = Lifetime("gatewayd")
    ready = asyncio.Event()
    lifetime.ready = ready.set  # type: ignore[method-assign]
    async with asyncio.TaskGroup() as group:
        group.create_task(serve_gateway(config, lifetime))
        await ready.wait()
        channel = connect(config.address)
        try:
            yield channel
        finally:
            channel.close()
            lifetime.stop()


@contextlib.asynccontextmanager
async def _back(address: str, handlers: Sequence[Any], name: str) -> AsyncIterator[None]:
    async with serve(address, handlers, name=name, grace=0.05):
        yield


@contextlib.asynccontextmanager
async def _constellation(directory: Path, *, tasks: Sequence[Any] = TASKS) -> AsyncIterator[tuple[Config, Channel]]:
    config = _config(directory)
    async with (
        _back(config.metadata, METADATA, "metadatad"),
        _back(config.images, IMAGES, "imaged"),
        _back(config.tasks, tasks, "taskd"),
        _gateway(config) as channel,
    ):
        yield config, channel


async def test_calls_are_routed_by_service(tmp_path: Path) -> None:
    """Each service's calls arrive at its daemon; which answers for itself what it lacks."""
    async with _constellation(tmp_path) as (_, channel):
        listed = await NamespacesStub(channel).list(ListNamespacesRequest())
        for call in (
            ContainersStub(channel).get(GetContainerRequest()),
            DiffStub(channel).apply(ApplyRequest()),
            TasksStub(channel).get(GetRequest()),
        ):
            with pytest.raises(errors.Unimplemented, match=r"unknown service containerd\.services"):
                await call

    assert listed.namespaces == [Namespace(name="moby")]


def test_every_service_of_the_api_has_its_place() -> None:
    """All that containerd's clients call is routed or answered here, but for Mounts."""
    api = Path(routes.__file__).resolve().parents[2] / "proto"
    services = set()
    for path in [*api.glob("containerd/services/**/*.proto"), *api.glob("carina/**/*.proto")]:
        text = path.read_text()
        package = text.partition("\npackage ")[2].partition(";")[0]
        services |= {f"{package}.{line.split()[1]}" for line in text.splitlines() if line.startswith("service ")}
    own = {
        "carina.swap.v1.Swap",
        "containerd.services.introspection.v1.Introspection",
        "containerd.services.version.v1.Version",
        "carina.metrics.v1.Metrics",
    }
    nobody = {
        "containerd.services.mounts.v1.Mounts",
        "containerd.services.events.ttrpc.v1.Events",
        "carina.content.v1.Integrity",  # for metadatad alone, at its back ends
    }

    assert services - own - nobody == set(routes.ROUTES)


def test_methods_with_streams_are_known() -> None:
    """Metrics tell calls with streams from others, though the gateway decodes none."""
    api = Path(routes.__file__).resolve().parents[2] / "proto"
    answers: set[str] = set()
    both: set[str] = set()
    for path in [*api.glob("containerd/services/**/*.proto"), *api.glob("carina/**/*.proto")]:
        text = path.read_text()
        package, service = text.partition("\npackage ")[2].partition(";")[0], ""
        for line in text.splitlines():
            if line.startswith("service "):
                service = f"{package}.{line.split()[1]}"
            found = re.match(r" +rpc (\w+)\((stream )?[\w.]+\) returns \(stream ", line)
            if found and service in routes.ROUTES:
                (both if found[2] else answers).add(f"/{service}/{found[1]}")

    assert (answers, both) == (set(routes.STREAMS), set(routes.BOTH_WAYS))


async def test_mounts_are_unimplemented(tmp_path: Path) -> None:
    """Clients of the mount manager get the answer that makes them do without it."""
    async with _constellation(tmp_path) as (_, channel):
        with pytest.raises(errors.Unimplemented, match=r"unknown service containerd\.services\.mounts"):
            await MountsStub(channel).activate(ActivateRequest())


async def test_plugins_are_put_together(tmp_path: Path) -> None:
    """Plugins of all services and the gateway's own, filtered."""
    async with _constellation(tmp_path) as (_, channel):
        stub = IntrospectionStub(channel)
        everything = (await stub.plugins(PluginsRequest())).plugins
        some = (
            await stub.plugins(PluginsRequest(filters=["type==io.containerd.grpc.v1,id==tasks", "id==local"]))
        ).plugins
        with pytest.raises(errors.InvalidArgument):
            await stub.plugins(PluginsRequest(filters=["type=="]))
    found = [(plugin.type, plugin.id) for plugin in everything]

    assert {("io.containerd.content.v1", "content"), ("io.containerd.runtime.v2", "task")} <= set(found)
    assert {name for kind, name in found if kind == "io.containerd.grpc.v1"} == set(routes.PLUGINS)
    assert all(plugin.init_err is None for plugin in everything)
    assert found == sorted(found)
    assert [(plugin.type, plugin.id) for plugin in some] == [
        ("io.containerd.grpc.v1", "tasks"),
        ("io.containerd.transfer.v1", "local"),
    ]


async def test_a_service_that_does_not_answer_shows_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow and an absent service cost the listing a bounded time and leave their errors in it."""
    monkeypatch.setattr("gatewayd.plugins.ANSWER_SECONDS", 0.2)
    config = _config(tmp_path)
    async with _back(config.metadata, METADATA, "metadatad"), _back(config.tasks, [Introspection(delay=60)], "taskd"):
        async with _gateway(config) as channel:
            answer = await IntrospectionStub(channel).plugins(PluginsRequest(filters=["type==io.containerd.grpc.v1"]))
    states = {plugin.id: plugin.init_err.message if plugin.init_err else "" for plugin in answer.plugins}

    assert "nothing answers" in states["transfer"]
    assert "no answer from" in states["tasks"]
    assert states["content"] == states["version"] == ""


async def test_the_instance_has_a_lasting_uuid(tmp_path: Path) -> None:
    """Server answers the same UUID after a restart, and the process."""
    answers = []
    for _ in range(2):
        async with _gateway(_config(tmp_path)) as channel:
            answers.append(await IntrospectionStub(channel).server(Empty()))

    assert str(uuid.UUID(answers[0].uuid)) == answers[0].uuid == answers[1].uuid
    assert answers[0].pid == os.getpid()
    assert answers[0].pidns == os.stat("/proc/self/ns/pid").st_ino
    assert (tmp_path / "gatewayd").stat().st_mode & 0o777 == 0o700


def test_a_damaged_uuid_is_reported(tmp_path: Path) -> None:
    """A file that holds no UUID is named, not replaced."""
    first = identity(tmp_path)
    assert identity(tmp_path) == first
    (tmp_path / "uuid").write_text("what?")

    with pytest.raises(errors.DataLoss, match=r"uuid does not hold a UUID"):
        identity(tmp_path)
    assert (tmp_path / "uuid").read_text() == "what?"


async def test_plugin_info_is_asked_of_taskd(tmp_path: Path) -> None:
    """The description of a runtime is taskd's."""
    async with _constellation(tmp_path) as (_, channel):
        answer = await IntrospectionStub(channel).plugin_info(
            PluginInfoRequest(type="io.containerd.runtime.v2", id="task")
        )

    assert answer.plugin == Plugin(type="io.containerd.runtime.v2", id="task")


async def test_health_is_that_of_the_services(tmp_path: Path) -> None:
    """The gateway serves while metadatad does; each back end is known by its name; changes are seen soon."""
    config = _config(tmp_path)

    async def states(channel: Channel) -> dict[str, str]:
        stub = HealthStub(channel)
        names = ("", "metadatad", "imaged", "taskd")
        return {name: (await stub.check(HealthCheckRequest(service=name))).status.name or "" for name in names}

    async with _gateway(config) as channel:
        before = await states(channel)
        async with _back(config.metadata, METADATA, "metadatad"), _back(config.tasks, TASKS, "taskd"):
            async with asyncio.timeout(30):
                while (await states(channel))[""] != "SERVING" or (await states(channel))["taskd"] != "SERVING":
                    await asyncio.sleep(0.05)
            during = await states(channel)

    assert set(before.values()) == {"NOT_SERVING"}
    assert during == {"": "SERVING", "metadatad": "SERVING", "imaged": "NOT_SERVING", "taskd": "SERVING"}


async def test_a_service_that_restarts_costs_its_calls_only(tmp_path: Path) -> None:
    """While metadatad is away its calls are Unavailable at once, others work; afterwards all do."""
    config = _config(tmp_path)
    async with _back(config.tasks, TASKS, "taskd"), _gateway(config) as channel:
        for _ in range(2):
            with pytest.raises(errors.Unavailable, match=r"nothing answers at .*metadatad\.sock"):
                await NamespacesStub(channel).list(ListNamespacesRequest())
            await IntrospectionStub(channel).plugin_info(PluginInfoRequest())
            async with _back(config.metadata, METADATA, "metadatad"):
                await NamespacesStub(channel).list(ListNamespacesRequest())


async def _ctr(address: str, *words: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        "ctr", "--address", address.removeprefix("unix://"), *words, stdout=-1, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_the_real_ctr(tmp_path: Path) -> None:
    """containerd's own client finds version, UUID, plugins and namespaces, and understands what it is refused."""
    async with _constellation(tmp_path) as (config, _):
        version = await _ctr(config.address, "version")
        plugins = await _ctr(config.address, "plugins", "ls")
        namespaces = await _ctr(config.address, "namespaces", "ls")
        refused = await _ctr(config.address, "containers", "ls")

    assert version[0] == 0
    assert "2.3.0+carina" in version[1]
    assert (tmp_path / "gatewayd" / "uuid").read_text() in version[1]
    assert "io.containerd.transfer.v1" in plugins[1]
    assert "moby" in namespaces[1]
    assert refused[0] == 1
    assert "unknown service containerd.services.containers.v1.Containers: not implemented" in refused[1]


def test_settings(tmp_path: Path) -> None:
    """Settings come from [gateway]; what is not a setting is named."""
    services = {"gateway": "unix:///g", "metadata": "unix:///m", "images": "unix:///i", "tasks": "unix:///t"}

    def load(**table: Any) -> Config:
        return read(Constellation(root=tmp_path, services=services, sections={"gateway": table}))

    assert load(group="root", grace=1.5) == Config(
        root=tmp_path / "gatewayd",
        address="unix:///g",
        metadata="unix:///m",
        images="unix:///i",
        tasks="unix:///t",
        gid=0,
        grace=1.5,
    )
    for table in ({"group": "no such group"}, {"grace": -1}, {"grace": True}, {"other": 1}, {"group": True}):
        with pytest.raises(errors.InvalidArgument, match="gateway"):
            load(**table)
