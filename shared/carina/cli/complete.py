"""What a shell offers for names of things: asked of the server, with little patience."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from carina.client import Client

SECONDS: Final = 1.0
"""For the server to answer: who waits for a completion has a finger on a key."""
MOST: Final = 500
"""Names that are offered."""

Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


async def _images(client: "Client") -> Sequence[str]:
    return [image.name for image in await client.images.list()]


async def _containers(client: "Client") -> Sequence[str]:
    return [container.id for container in await client.containers.list()]


async def _tasks(client: "Client") -> Sequence[str]:
    return [task.container_id for task in await client.tasks.list()]


async def _content(client: "Client") -> Sequence[str]:
    return [str(info.digest) async for info in client.content.walk()]


async def _ingests(client: "Client") -> Sequence[str]:
    return [status.ref for status in await client.content.statuses()]


async def _snapshots(client: "Client") -> Sequence[str]:
    context = click.get_current_context(silent=True)
    name = (context.meta.get("snapshotter") if context else None) or "overlayfs"
    return [info.name async for info in client.snapshotter(name).walk()]


async def _leases(client: "Client") -> Sequence[str]:
    return [lease.id for lease in await client.leases.list()]


async def _namespaces(client: "Client") -> Sequence[str]:
    return [namespace.name for namespace in await client.namespaces.list()]


async def _snapshotters(client: "Client") -> Sequence[str]:
    from carina.introspection.client import RemoteIntrospection

    found = await RemoteIntrospection(client.channel).plugins(["type==io.containerd.snapshotter.v1"])
    return [plugin.id for plugin in found]


_SOURCES: Final[dict[str, Callable[["Client"], Awaitable[Sequence[str]]]]] = {
    "images": _images,
    "containers": _containers,
    "tasks": _tasks,
    "content": _content,
    "ingests": _ingests,
    "snapshots": _snapshots,
    "leases": _leases,
    "namespaces": _namespaces,
    "snapshotters": _snapshotters,
}


def names(kind: str) -> Complete:
    """A completion with the names of all things of a kind; nothing where the server does not say them in time."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        from click.shell_completion import CompletionItem

        taken = {word for words in ctx.params.values() if isinstance(words, tuple | list) for word in words}
        found = [name for name in known(ctx, kind) if name.startswith(incomplete) and name not in taken]
        return [CompletionItem(name) for name in sorted(found)[:MOST]]

    return complete


def known(ctx: click.Context, kind: str) -> Sequence[str]:
    """The names of a kind of thing; none where they can't be had."""
    import asyncio
    from dataclasses import replace

    from carina.cli.target import Target
    from carina.errors import CarinaError

    root: Any = ctx.find_root().params
    target = ctx.find_object(Target) or Target(
        address=root.get("address"), namespace=root.get("namespace") or "default", embedded=root.get("embedded")
    )

    async def work(client: "Client") -> Sequence[str]:
        async with asyncio.timeout(SECONDS):
            return await _SOURCES[kind](client)

    try:
        return replace(target, timeout=SECONDS).run(work)
    except (CarinaError, OSError, TimeoutError):
        return []
