"""snapshots: the snapshots of a namespace in one snapshotter."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import click

from carina.cli import listing, output
from carina.cli.complete import names
from carina.cli.group import Group
from carina.cli.swap import snapshots_copy
from carina.cli.target import Target
from carina.snapshots import Info, Kind

if TYPE_CHECKING:
    from carina.client import Client


NOBODY: Final[Mapping[str, Sequence[str]]] = MappingProxyType({})


@click.group(cls=Group, aliases={"m": "mounts", "mount": "mounts"})
@click.option(
    "--snapshotter",
    envvar="CARINA_SNAPSHOTTER",
    default="overlayfs",
    show_default=True,
    shell_complete=names("snapshotters"),
)
@click.pass_context
def snapshots(ctx: click.Context, snapshotter: str) -> None:
    """Manage snapshots."""
    ctx.meta["snapshotter"] = snapshotter


def _key(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    parent = ctx.parent
    ctx.meta.setdefault("snapshotter", parent.params.get("snapshotter") if parent else None)
    return names("snapshots")(ctx, param, incomplete)


def _name() -> str:
    name: str = click.get_current_context().meta["snapshotter"]
    return name


def _list(target: Target, filters: Sequence[str] = ()) -> list[Info]:
    name = _name()

    async def work(client: "Client") -> list[Info]:
        return [info async for info in client.snapshotter(name).walk(filters)]

    return sorted(target.run(work), key=lambda info: info.name)


@snapshots.command("ls")
@listing.options
@click.argument("filters", nargs=-1)
@click.pass_obj
def list_(target: Target, form: listing.Form, filters: Sequence[str]) -> None:
    """List snapshots."""
    found = _list(target, filters)
    listing.show(
        form,
        map(listing.fields, found),
        columns={
            "KEY": "name",
            "PARENT": lambda row: row["parent"] or " ",
            "KIND": lambda row: row["kind"].name.capitalize(),
        },
        name="name",
    )


@snapshots.command("tree")
@click.pass_obj
def tree(target: Target) -> None:
    """Show which snapshot stands on which, and which images and containers refer to each."""
    name = _name()

    async def work(client: "Client") -> tuple[list[Info], Mapping[str, Sequence[str]]]:
        from carina.cli.references import of_snapshots

        found = [info async for info in client.snapshotter(name).walk()]
        return sorted(found, key=lambda info: info.name), await of_snapshots(client, name)

    found, referrers = target.run(work)
    for line in tree_lines(found, referrers):
        click.echo(output.plain(line))


def tree_lines(found: Sequence[Info], referrers: Mapping[str, Sequence[str]] = NOBODY) -> Iterator[str]:
    """Each snapshot once, below its parent where that is there too: a faulty back end may name any parent.

    `referrers` says by key who refers to a snapshot, in words.
    """
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
            by = "".join(f"  ← {referrer}" for referrer in referrers.get(info.name, ()))
            yield f"{'  ' * depth}{'└ ' if depth else ''}{info.name}{mark}{by}"
            stack += [(child, depth + 1) for child in reversed(children.get(info.name, []))]


@snapshots.command("info")
@click.argument("key", shell_complete=_key)
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
@click.option("-b", "exact", is_flag=True, help="Print sizes in bytes.")
@listing.options
@click.argument("keys", nargs=-1, shell_complete=_key)
@click.pass_obj
def usage(target: Target, form: listing.Form, exact: bool, keys: Sequence[str]) -> None:
    """Show what snapshots take on disk, without their parents."""
    name = _name()

    async def work(client: "Client") -> list[listing.Row]:
        snapshotter = client.snapshotter(name)
        wanted = keys or sorted([info.name async for info in snapshotter.walk()])
        found = [(key, await snapshotter.usage(key)) for key in wanted]
        return [{"key": key, "size": used.size, "inodes": used.inodes} for key, used in found]

    listing.show(
        form,
        target.run(work),
        columns={
            "KEY": "key",
            "SIZE": lambda row: row["size"] if exact else output.size(row["size"]),
            "INODES": "inodes",
        },
        name="key",
    )


def _print_mounts(mounts: Sequence["Mount"], at: str) -> None:
    from carina.linux.mount import format_mount_command

    for mount in mounts:
        click.echo(format_mount_command(mount, at))


if TYPE_CHECKING:
    from carina.mount import Mount


@snapshots.command("mounts")
@click.argument("at", metavar="TARGET")
@click.argument("key", shell_complete=_key)
@click.pass_obj
def mounts(target: Target, at: str, key: str) -> None:
    """Print the command that mounts a snapshot at TARGET."""
    name = _name()

    async def work(client: "Client") -> Sequence["Mount"]:
        return await client.snapshotter(name).mounts(key)

    _print_mounts(target.run(work), at)


@snapshots.command("prepare")
@click.option("-t", "--target", "at", default="", help="Print the command that mounts it there.")
@click.option("--mounts", "as_json", is_flag=True, help="Print its mounts as JSON.")
@click.argument("key")
@click.argument("parent", default="", shell_complete=_key)
@click.pass_obj
def prepare(target: Target, at: str, as_json: bool, key: str, parent: str) -> None:
    """Make a read-write snapshot on top of PARENT. It is a collection root until removed."""
    name = _name()

    async def work(client: "Client") -> Sequence["Mount"]:
        return await client.snapshotter(name).prepare(key, parent, _root())

    _show(target.run(work), at, as_json=as_json)


def _show(made: Sequence["Mount"], at: str, *, as_json: bool) -> None:
    if at:
        _print_mounts(made, at)
    if as_json:
        output.as_json([listing.plain(mount) for mount in made])


def _root() -> dict[str, str]:
    from datetime import UTC, datetime

    from carina.labels import GC_ROOT

    return {GC_ROOT: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}


@snapshots.command("view")
@click.option("-t", "--target", "at", default="", help="Print the command that mounts it there.")
@click.option("--mounts", "as_json", is_flag=True, help="Print its mounts as JSON.")
@click.argument("key")
@click.argument("parent", default="", shell_complete=_key)
@click.pass_obj
def view(target: Target, at: str, as_json: bool, key: str, parent: str) -> None:
    """Make a read-only view of PARENT. It is a collection root until removed."""
    name = _name()

    async def work(client: "Client") -> Sequence["Mount"]:
        return await client.snapshotter(name).view(key, parent, _root())

    _show(target.run(work), at, as_json=as_json)


@snapshots.command("commit")
@click.argument("key")
@click.argument("active", shell_complete=_key)
@click.pass_obj
def commit(target: Target, key: str, active: str) -> None:
    """Make the read-write snapshot ACTIVE immutable under the name KEY."""
    name = _name()

    async def work(client: "Client") -> None:
        await client.snapshotter(name).commit(key, active, _root())

    target.run(work, deadline=None)


@snapshots.command("diff")
@click.option("--media-type", default="", help="Of the layer; a tar archive with gzip where absent.")
@click.option("--ref", default="", help="Ref of the ingest.")
@click.option("--keep", is_flag=True, help="Keep the layer in the content store until somebody removes it.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label of the layer.")
@click.argument("lower", shell_complete=_key)
@click.argument("upper", default="", shell_complete=_key)
@click.pass_obj
def diff(target: Target, media_type: str, ref: str, keep: bool, labels: Sequence[str], lower: str, upper: str) -> None:
    """Write what UPPER changes on LOWER (or LOWER on its parent) to standard output, as a layer."""
    name, values = _name(), output.parse_labels(labels) | (_root() if keep else {})

    async def work(client: "Client") -> None:
        from carina.cli.layers import write_diff

        await write_diff(client, name, lower, upper, media_type=media_type, ref=ref, labels=values)

    target.run(work, deadline=None)


@snapshots.command("unpack")
@click.argument("digest", shell_complete=names("content"))
@click.pass_obj
def unpack(target: Target, digest: str) -> None:
    """Make snapshots of the layers of the image whose manifest or index is DIGEST; the top one's key is printed."""
    name = _name()

    async def work(client: "Client") -> str:
        from carina.cli.layers import unpack_manifest

        return await unpack_manifest(client, name, digest)

    click.echo(target.run(work, deadline=None))


@snapshots.command("label")
@click.argument("key", shell_complete=_key)
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
@click.argument("keys", nargs=-1, required=True, shell_complete=_key)
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
