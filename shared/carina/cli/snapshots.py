"""snapshots: the snapshots of a namespace in one snapshotter."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from carina.cli import output
from carina.cli.swap import snapshots_copy
from carina.cli.target import Target
from carina.snapshots import Info, Kind

if TYPE_CHECKING:
    from carina.client import Client


@click.group()
@click.option("--snapshotter", envvar="CARINA_SNAPSHOTTER", default="overlayfs", show_default=True)
@click.pass_context
def snapshots(ctx: click.Context, snapshotter: str) -> None:
    """Manage snapshots."""
    ctx.meta["snapshotter"] = snapshotter


def _name() -> str:
    name: str = click.get_current_context().meta["snapshotter"]
    return name


def _list(target: Target, filters: Sequence[str] = ()) -> list[Info]:
    name = _name()

    async def work(client: "Client") -> list[Info]:
        return [info async for info in client.snapshotter(name).walk(filters)]

    return sorted(target.run(work), key=lambda info: info.name)


@snapshots.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print keys only.")
@click.argument("filters", nargs=-1)
@click.pass_obj
def list_(target: Target, quiet: bool, filters: Sequence[str]) -> None:
    """List snapshots."""
    found = _list(target, filters)
    if quiet:
        output.names(info.name for info in found)
        return
    output.table(("KEY", "PARENT", "KIND"), [(i.name, i.parent, i.kind.name.capitalize()) for i in found])


@snapshots.command("tree")
@click.pass_obj
def tree(target: Target) -> None:
    """Show which snapshot stands on which."""
    for line in tree_lines(_list(target)):
        click.echo(output.plain(line))


def tree_lines(found: Sequence[Info]) -> Iterator[str]:
    """Each snapshot once, below its parent where that is there too: a faulty back end may name any parent."""
    children: dict[str, list[Info]] = {}
    for info in found:
        children.setdefault(info.parent, []).append(info)
    names = {info.name for info in found}
    shown: set[str] = set()
    # Those of a cycle have no top; they come last, from where they are met first.
    for top in [*(info for info in found if info.parent not in names), *found]:
        stack = [(top, 0)]
        while stack:
            info, depth = stack.pop()
            if info.name in shown:
                continue
            shown.add(info.name)
            mark = "" if info.kind is Kind.COMMITTED else f"  ({info.kind.name.lower()})"
            yield f"{'  ' * depth}{'└ ' if depth else ''}{info.name}{mark}"
            stack += [(child, depth + 1) for child in reversed(children.get(info.name, []))]


@snapshots.command("info")
@click.argument("key")
@click.pass_obj
def info(target: Target, key: str) -> None:
    """Show one snapshot's record."""
    name = _name()

    async def work(client: "Client") -> Info:
        return await client.snapshotter(name).stat(key)

    found = target.run(work)
    output.as_json(
        {
            "Kind": found.kind.name.capitalize(),
            "Name": found.name,
            "Parent": found.parent,
            "Labels": dict(found.labels),
            "Created": found.created_at,
            "Updated": found.updated_at,
        }
    )


@snapshots.command("usage")
@click.argument("keys", nargs=-1)
@click.pass_obj
def usage(target: Target, keys: Sequence[str]) -> None:
    """Show what snapshots take on disk, without their parents."""
    name = _name()

    async def work(client: "Client") -> list[tuple[str, str, str]]:
        snapshotter = client.snapshotter(name)
        wanted = keys or sorted([info.name async for info in snapshotter.walk()])
        found = [(key, await snapshotter.usage(key)) for key in wanted]
        return [(key, output.size(used.size), str(used.inodes)) for key, used in found]

    output.table(("KEY", "SIZE", "INODES"), target.run(work))


def _print_mounts(mounts: Sequence["Mount"], at: str) -> None:
    from carina.linux.mount import format_mount_command

    for mount in mounts:
        click.echo(format_mount_command(mount, at))


if TYPE_CHECKING:
    from carina.mount import Mount


@snapshots.command("mounts")
@click.argument("at", metavar="TARGET")
@click.argument("key")
@click.pass_obj
def mounts(target: Target, at: str, key: str) -> None:
    """Print the command that mounts a snapshot at TARGET."""
    name = _name()

    async def work(client: "Client") -> Sequence["Mount"]:
        return await client.snapshotter(name).mounts(key)

    _print_mounts(target.run(work), at)


@snapshots.command("prepare")
@click.option("-t", "--target", "at", default="", help="Print the command that mounts it there.")
@click.argument("key")
@click.argument("parent", default="")
@click.pass_obj
def prepare(target: Target, at: str, key: str, parent: str) -> None:
    """Make a read-write snapshot on top of PARENT. It is a collection root until removed."""
    name = _name()

    async def work(client: "Client") -> Sequence["Mount"]:
        return await client.snapshotter(name).prepare(key, parent, _root())

    made = target.run(work)
    if at:
        _print_mounts(made, at)


def _root() -> dict[str, str]:
    from datetime import UTC, datetime

    from carina.labels import GC_ROOT

    return {GC_ROOT: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}


@snapshots.command("view")
@click.option("-t", "--target", "at", default="", help="Print the command that mounts it there.")
@click.argument("key")
@click.argument("parent", default="")
@click.pass_obj
def view(target: Target, at: str, key: str, parent: str) -> None:
    """Make a read-only view of PARENT. It is a collection root until removed."""
    name = _name()

    async def work(client: "Client") -> Sequence["Mount"]:
        return await client.snapshotter(name).view(key, parent, _root())

    made = target.run(work)
    if at:
        _print_mounts(made, at)


@snapshots.command("commit")
@click.argument("key")
@click.argument("active")
@click.pass_obj
def commit(target: Target, key: str, active: str) -> None:
    """Make the read-write snapshot ACTIVE immutable under the name KEY."""
    name = _name()

    async def work(client: "Client") -> None:
        await client.snapshotter(name).commit(key, active, _root())

    target.run(work, deadline=None)


@snapshots.command("label")
@click.argument("key")
@click.argument("labels", nargs=-1, required=True)
@click.pass_obj
def label(target: Target, key: str, labels: Sequence[str]) -> None:
    """Set labels, KEY=VALUE; an empty value removes one."""
    name, values = _name(), output.parse_labels(labels)

    async def work(client: "Client") -> Info:
        info = Info(name=key, labels=values)
        return await client.snapshotter(name).update(info, [f"labels.{label}" for label in values])

    click.echo(output.labels(target.run(work).labels))


@snapshots.command("rm")
@click.argument("keys", nargs=-1, required=True)
@click.pass_obj
def remove(target: Target, keys: Sequence[str]) -> None:
    """Remove snapshots."""
    name = _name()

    async def work(client: "Client") -> None:
        for key in keys:
            await client.snapshotter(name).remove(key)
            click.echo(key)

    target.run(work, deadline=None)


snapshots.add_command(snapshots_copy)
