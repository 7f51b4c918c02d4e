"""The wire side of taskd: the Events service that shims publish to, task events, and Introspection."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Final

import betterproto2

from carina import context
from carina.aio.threads import in_thread
from carina.api.containerd import events as wire
from carina.api.containerd import types
from carina.api.containerd.services.events.ttrpc.v1 import ForwardRequest
from carina.api.containerd.services.introspection import v1 as introspection
from carina.api.google.protobuf import Any, Empty
from carina.errors import InvalidArgument, NotFound
from carina.events import Envelope
from carina.platforms import host
from carina.rpc.codec import decode, encode
from carina.sandboxes import End
from carina.tasks import Exit
from carina.ttrpc.client import dial
from carina.ttrpc.server import Handler, unary
from carina.typed import TypedValue
from taskd.config import Config
from taskd.outbox import Kind, Subject
from taskd.policy import POLICIES
from taskd.runtime import find_shim
from taskd.shim import Launcher

FORWARD: Final = "containerd.services.events.ttrpc.v1.Events/Forward"
EXIT_TOPIC: Final = "/tasks/exit"
DELETE_TOPIC: Final = "/tasks/delete"
RUNTIME_TYPE: Final = "io.containerd.runtime.v2"

log = logging.getLogger(__name__)


def parse_any(data: bytes) -> TypedValue:
    """Raises InvalidArgument."""
    found = decode(Any, data)
    return TypedValue(found.type_url, found.value)


def subject(envelope: Envelope) -> Subject:
    """What an event says. One that we can't read says nothing, and is passed on all the same."""
    namespace, value = envelope.namespace, envelope.event.value
    try:
        match envelope.topic:
            case "/tasks/create":
                create = decode(wire.TaskCreate, value)
                return Subject(kind=Kind.CREATE, namespace=namespace, id=create.container_id, pid=create.pid)
            case "/tasks/start":
                start = decode(wire.TaskStart, value)
                return Subject(kind=Kind.START, namespace=namespace, id=start.container_id, pid=start.pid)
            case "/tasks/exec-started":
                started = decode(wire.TaskExecStarted, value)
                id, exec_id = started.container_id, started.exec_id
                return Subject(kind=Kind.START, namespace=namespace, id=id, exec_id=exec_id, pid=started.pid)
            case "/tasks/exit":
                exit = decode(wire.TaskExit, value)
                id, exec_id = exit.container_id, _exec_id(exit.container_id, exit.id)
                return Subject(kind=Kind.EXIT, namespace=namespace, id=id, exec_id=exec_id, pid=exit.pid)
            case "/tasks/delete":
                delete = decode(wire.TaskDelete, value)
                id, exec_id = delete.container_id, _exec_id(delete.container_id, delete.id)
                return Subject(kind=Kind.DELETE, namespace=namespace, id=id, exec_id=exec_id, pid=delete.pid)
    except InvalidArgument as error:
        log.warning("an event of topic %s can't be read: %s", envelope.topic, error)
    return Subject(kind=Kind.OTHER)


def _exec_id(container_id: str, id: str) -> str:
    return "" if id == container_id else id


def exit_event(namespace: str, id: str, exit: Exit) -> Envelope:
    """The event of a process's end, where its shim doesn't send it."""
    message = wire.TaskExit(
        container_id=id,
        id=exit.exec_id or id,
        pid=exit.pid,
        exit_status=exit.status,
        exited_at=exit.exited_at,
    )
    event = TypedValue("containerd.events.TaskExit", encode(message))
    return Envelope(timestamp=datetime.now(UTC), namespace=namespace, topic=EXIT_TOPIC, event=event)


def delete_event(namespace: str, id: str, exit: Exit) -> Envelope:
    """The event of a task's deletion, where its shim doesn't send it."""
    message = wire.TaskDelete(container_id=id, pid=exit.pid, exit_status=exit.status, exited_at=exit.exited_at)
    event = TypedValue("containerd.events.TaskDelete", encode(message))
    return Envelope(timestamp=datetime.now(UTC), namespace=namespace, topic=DELETE_TOPIC, event=event)


def _sandbox_event(namespace: str, topic: str, name: str, message: betterproto2.Message) -> Envelope:
    event = TypedValue(f"containerd.events.{name}", encode(message))
    return Envelope(timestamp=datetime.now(UTC), namespace=namespace, topic=topic, event=event)


def sandbox_created(namespace: str, id: str) -> Envelope:
    return _sandbox_event(namespace, "/sandboxes/create", "SandboxCreate", wire.SandboxCreate(sandbox_id=id))


def sandbox_started(namespace: str, id: str) -> Envelope:
    return _sandbox_event(namespace, "/sandboxes/start", "SandboxStart", wire.SandboxStart(sandbox_id=id))


def sandbox_exited(namespace: str, id: str, end: End) -> Envelope:
    message = wire.SandboxExit(sandbox_id=id, exit_status=end.status, exited_at=end.exited_at)
    return _sandbox_event(namespace, "/sandboxes/exit", "SandboxExit", message)


def event_handlers(record: Callable[[Envelope], Awaitable[None]]) -> Mapping[str, Handler]:
    """The service that shims publish to. `record` returns once the event is safe."""

    async def forward(request: ForwardRequest) -> Empty:
        found = request.envelope
        if found is None or found.event is None:
            raise InvalidArgument("the request has no event")
        if not found.topic.startswith("/"):
            raise InvalidArgument(f"topic {found.topic!r} must start with /")
        context.validate_identifier(found.namespace, "namespace")
        envelope = Envelope(
            timestamp=found.timestamp or datetime.now(UTC),
            namespace=found.namespace,
            topic=found.topic,
            event=TypedValue(found.event.type_url, found.event.value),
        )
        await record(envelope)
        return Empty()

    return {FORWARD: unary(ForwardRequest, forward)}


async def forward_event(socket: str, envelope: Envelope) -> None:
    """Publish an event as a shim does.

    Raises:
        Unavailable: taskd does not answer.
    """
    event = Any(type_url=envelope.event.type_url, value=envelope.event.value)
    wired = types.Envelope(
        timestamp=envelope.timestamp, namespace=envelope.namespace, topic=envelope.topic, event=event
    )
    client = await dial(socket)
    try:
        await client.call(FORWARD, ForwardRequest(envelope=wired), Empty)
    finally:
        client.close()
        await client.closed()


def _machine() -> types.Platform:
    own = host()
    return types.Platform(os=own.os, architecture=own.architecture, variant=own.variant)


class IntrospectionService(introspection.IntrospectionBase):
    """Describes taskd's plugins; the gateway merges those of every service."""

    def __init__(self, config: Config, launcher: Launcher) -> None:
        self._config = config
        self._launcher = launcher

    async def plugins(self, message: introspection.PluginsRequest) -> introspection.PluginsResponse:
        return introspection.PluginsResponse(plugins=plugins())

    async def plugin_info(self, message: introspection.PluginInfoRequest) -> introspection.PluginInfoResponse:
        plugin = next((found for found in plugins() if (found.type, found.id) == (message.type, message.id)), None)
        if plugin is None:
            raise NotFound(f"plugin {message.type}.{message.id}: not found")
        if message.type != RUNTIME_TYPE or message.options is None:
            return introspection.PluginInfoResponse(plugin=plugin)
        request = decode(types.RuntimeRequest, message.options.value)
        given = request.options
        options = None if given is None else TypedValue(given.type_url, given.value)
        binary = await in_thread(find_shim, request.runtime_path, self._config.shim_directories)
        info = await self._launcher.describe(binary, options)
        return introspection.PluginInfoResponse(plugin=plugin, extra=Any(type_url=info.type_url, value=info.value))


def plugins() -> list[introspection.Plugin]:
    """What containerd would list for the work that taskd does."""
    return [
        introspection.Plugin(type=RUNTIME_TYPE, id="task", platforms=[_machine()]),
        introspection.Plugin(type="io.containerd.sandbox.controller.v1", id="shim"),
        introspection.Plugin(type="io.containerd.monitor.container.v1", id="restart", capabilities=[*sorted(POLICIES)]),
        introspection.Plugin(type="io.containerd.service.v1", id="tasks-service"),
        introspection.Plugin(type="io.containerd.grpc.v1", id="tasks"),
    ]


def cgroup_metrics(stats: TypedValue) -> tuple[int, object]:
    """Version of the control groups, and the message of what was measured. Raises InvalidArgument: it is neither's."""
    match stats.type_url.rpartition("/")[2]:
        case "io.containerd.cgroups.v1.Metrics":
            from carina.api.io.containerd.cgroups.v1 import Metrics as Version1  # only where somebody asks

            return 1, decode(Version1, stats.value)
        case "io.containerd.cgroups.v2.Metrics":
            from carina.api.io.containerd.cgroups.v2 import Metrics as Version2

            return 2, decode(Version2, stats.value)
    raise InvalidArgument(f"metrics of type {stats.type_url!r} are not those of control groups")
