"""Proxy plugins: any implementation of an interface, served on a socket for Carina or a containerd to plug in.

    carina.plugin.serve(MySnapshotter(), "/run/mine.sock")

Then, in the configuration of either:

    [proxy_plugins.mine]
    type = "snapshot"
    address = "/run/mine.sock"      # Carina: "unix:///run/mine.sock"

A containerd sends its namespaces along in the keys of snapshots: `NAMESPACE/NUMBER/KEY`.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from carina.aio.daemon import Lifetime, run
from carina.errors import InvalidArgument
from carina.rpc.server import Listener
from carina.rpc.server import serve as serve_rpc

if TYPE_CHECKING:
    from carina.content import ContentStore
    from carina.diff import Differ
    from carina.snapshots import Snapshotter

    Plugin = Snapshotter | ContentStore | Differ


def _snapshots(implementation: Any) -> Any:
    from carina.snapshots.server import SnapshotsService, only

    return SnapshotsService(only(implementation))


def _content(implementation: Any) -> Any:
    from carina.content.server import ContentService

    return ContentService(implementation)


def _diff(implementation: Any) -> Any:
    from carina.diff.server import DiffService

    return DiffService(implementation)


_INTERFACES: Final[tuple[tuple[frozenset[str], Callable[[Any], Any]], ...]] = (
    (frozenset(("prepare", "view", "mounts", "commit", "remove", "stat", "walk", "usage")), _snapshots),
    (frozenset(("info", "walk", "delete", "reader", "writer", "status", "abort")), _content),
    (frozenset(("apply", "diff")), _diff),
)
"""The methods that tell an interface from the others, and its adapter, imported when it is needed."""


def adapters(implementation: "Plugin") -> Sequence[Any]:
    """The gRPC services for each of the interfaces that an object implements.

    Raises:
        InvalidArgument: it implements none.
    """
    found = [
        adapter(implementation)
        for methods, adapter in _INTERFACES
        if all(callable(getattr(implementation, method, None)) for method in methods)
    ]
    if not found:
        raise InvalidArgument(
            f"{type(implementation).__name__} is neither a snapshotter nor a content store nor a differ"
        )
    return found


@contextlib.asynccontextmanager
async def serving(implementation: "Plugin", address: str | os.PathLike[str]) -> AsyncIterator[Listener]:
    """Serve on a socket (a path, or `unix:///path`) for the block. Calls that are under way at its end are let finish.

    Raises:
        InvalidArgument: the object implements no interface that can be plugged in, or the address is not valid.
        FailedPrecondition: somebody else serves there.
    """
    path = os.fspath(address)
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
