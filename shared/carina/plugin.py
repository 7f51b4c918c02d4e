"""Implementations of interfaces, served: on a socket for Carina or a containerd to plug in, or for any client to use.

    carina.plugin.serve(MySnapshotter(), "/run/mine.sock")

Then, in the configuration of either:

    [proxy_plugins.mine]
    type = "snapshot"
    address = "/run/mine.sock"      # Carina: "unix:///run/mine.sock"

A containerd sends its namespaces along in the keys of snapshots: `NAMESPACE/NUMBER/KEY`.

What can be plugged in (snapshotters, content stores, differs, sandbox controllers) is told by its methods.
Every other interface has to be named, as several have the same methods:

    carina.plugin.serve({"images": MyImages(), "content": MyContent()}, "/run/mine.sock")

Such a socket is one that a `carina.Client` can be given the address of.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from carina.aio.daemon import Lifetime, run
from carina.aio.threads import in_thread
from carina.errors import InvalidArgument
from carina.rpc.server import Listener
from carina.rpc.server import serve as serve_rpc

if TYPE_CHECKING:
    from carina.content import ContentStore
    from carina.diff import Differ
    from carina.sandboxes import SandboxController
    from carina.snapshots import Snapshotter

    Plugin = Snapshotter | ContentStore | Differ | SandboxController | Mapping[str, object]
    """An object that can be plugged in, or implementations by the names of their interfaces."""


# An adapter is imported when it is needed: each loads the messages of its service.


def _snapshots(implementation: Any) -> Sequence[Any]:
    from carina.snapshots.server import SnapshotsService, only

    return [SnapshotsService(only(implementation))]


def _content(implementation: Any) -> Sequence[Any]:
    from carina.content.server import ContentService

    return [ContentService(implementation)]


def _diff(implementation: Any) -> Sequence[Any]:
    from carina.diff.server import DiffService

    return [DiffService(implementation)]


def _controller(implementation: Any) -> Sequence[Any]:
    from carina.sandboxes.server import ControllerService

    return [ControllerService(implementation)]


def _images(implementation: Any) -> Sequence[Any]:
    from carina.images.server import ImagesService

    return [ImagesService(implementation)]


def _containers(implementation: Any) -> Sequence[Any]:
    from carina.containers.server import ContainersService

    return [ContainersService(implementation)]


def _namespaces(implementation: Any) -> Sequence[Any]:
    from carina.namespaces.server import NamespacesService

    return [NamespacesService(implementation)]


def _leases(implementation: Any) -> Sequence[Any]:
    from carina.leases.server import LeasesService

    return [LeasesService(implementation)]


def _sandboxes(implementation: Any) -> Sequence[Any]:
    from carina.sandboxes.server import SandboxesService

    return [SandboxesService(implementation)]


def _tasks(implementation: Any) -> Sequence[Any]:
    from carina.tasks.server import TasksService

    return [TasksService(implementation)]


def _events(implementation: Any) -> Sequence[Any]:
    from carina.events.server import EventsService

    return [EventsService(implementation)]


def _event_log(implementation: Any) -> Sequence[Any]:
    from carina.events.server import LogService

    return [LogService(implementation)]


def _introspection(implementation: Any) -> Sequence[Any]:
    from carina.introspection.server import IntrospectionService

    return [IntrospectionService(implementation)]


def _transfer(implementation: Any) -> Sequence[Any]:
    from carina.transfer.server import StreamingService, TransferService
    from carina.transfer.streams import Streams

    streams = Streams()
    return [TransferService(implementation, streams), StreamingService(streams)]


@dataclass(frozen=True, slots=True)
class _Interface:
    adapt: Callable[[Any], Sequence[Any]]
    methods: frozenset[str]


def _interface(adapt: Callable[[Any], Sequence[Any]], methods: str) -> _Interface:
    return _Interface(adapt, frozenset(methods.split()))


_RECORDS: Final = "get list create update delete"
INTERFACES: Final[Mapping[str, _Interface]] = {
    "snapshots": _interface(_snapshots, "prepare view mounts commit remove stat walk usage"),
    "content": _interface(_content, "info walk delete reader writer status abort"),
    "diff": _interface(_diff, "apply diff"),
    "sandbox_controller": _interface(_controller, "create start platform stop wait status shutdown metrics update"),
    "images": _interface(_images, _RECORDS),
    "containers": _interface(_containers, _RECORDS),
    "namespaces": _interface(_namespaces, _RECORDS),
    "sandboxes": _interface(_sandboxes, _RECORDS),
    "leases": _interface(_leases, "create delete list add_resource delete_resource resources"),
    "tasks": _interface(_tasks, "create start delete get list kill exec wait"),
    "events": _interface(_events, "publish forward subscribe"),
    "event_log": _interface(_event_log, "read window append"),
    "transfer": _interface(_transfer, "fetch push tag load save"),
    "introspection": _interface(_introspection, "plugins"),
}
"""Every interface by its name, with the methods that an implementation must have."""
PLUGGABLE: Final = ("snapshots", "content", "diff", "sandbox_controller")
"""Those that a constellation or a containerd takes as a proxy plugin: their methods tell them from one another."""


def adapters(implementation: "Plugin") -> Sequence[Any]:
    """The gRPC services for each of the interfaces that an object implements, or for those that are named.

    Raises:
        InvalidArgument: it implements none, or lacks a method of the one that is named.
    """
    if isinstance(implementation, Mapping):
        return [service for name, one in implementation.items() for service in _named(name, one)]
    found = [
        service
        for name in PLUGGABLE
        if not _missing(name, implementation)
        for service in INTERFACES[name].adapt(implementation)
    ]
    if not found:
        raise InvalidArgument(
            f"{type(implementation).__name__} is neither a snapshotter nor a content store nor a differ nor a sandbox"
            " controller; any other interface has to be named"
        )
    return found


def _named(name: str, implementation: object) -> Sequence[Any]:
    if name not in INTERFACES:
        raise InvalidArgument(f"{name!r} is no interface: expected one of {', '.join(INTERFACES)}")
    missing = _missing(name, implementation)
    if missing:
        raise InvalidArgument(
            f"{type(implementation).__name__} does not implement {name}: it has no method {', '.join(missing)}"
        )
    return INTERFACES[name].adapt(implementation)


def _missing(name: str, implementation: object) -> list[str]:
    return sorted(one for one in INTERFACES[name].methods if not callable(getattr(implementation, one, None)))


@contextlib.asynccontextmanager
async def serving(implementation: "Plugin", address: str | os.PathLike[str]) -> AsyncIterator[Listener]:
    """Serve on a socket (a path, or `unix:///path`) for the block. Calls that are under way at its end are let finish.

    Raises:
        InvalidArgument: the object implements no interface that can be served, or the address is not valid.
        FailedPrecondition: somebody else serves there.
    """
    text = os.fspath(address)
    path = text if "://" in text or os.path.isabs(text) else await in_thread(os.path.abspath, text)
    handlers = adapters(implementation)
    async with serve_rpc(path, handlers, name="plugin") as listener:
        yield listener


def serve(implementation: "Plugin", address: str | os.PathLike[str]) -> None:
    """Serve until SIGTERM or SIGINT, as the process's only work; ends the process."""

    async def main(lifetime: Lifetime) -> None:
        async with serving(implementation, address):
            lifetime.ready()
            await lifetime.stopped()

    run(Path(os.fspath(address)).stem, main)
