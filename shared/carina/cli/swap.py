"""swap: services moved to other implementations of them; copy: what these lack, brought to them first."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from carina.cli import output
from carina.cli.target import Target
from carina.errors import InvalidArgument
from carina.swap import Place

if TYPE_CHECKING:
    from carina.client import Client

SETTINGS = ("namespace", "snapshotter", "lease")
set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="namespace, snapshotter or lease over there."
)


def place(address: str, settings: Sequence[str]) -> Place:
    """Raises InvalidArgument: an address or a setting that can't be."""
    values = output.parse_pairs(settings, "--set")
    for key in values:
        if key not in SETTINGS:
            raise InvalidArgument(f"--set {key} is not a setting: expected one of {', '.join(SETTINGS)}")
    found = Place(
        address=address if "://" in address else f"unix://{address}",
        namespace=values.get("namespace", ""),
        snapshotter=values.get("snapshotter", ""),
        lease=values.get("lease", ""),
    )
    found.validate()
    return found


@click.command()
@click.argument("services")
@click.argument("address", default="")
@set_option
@click.option("--back", is_flag=True, help="To where the configuration has it, instead of ADDRESS.")
@click.pass_obj
def swap(target: Target, services: str, address: str, settings: Sequence[str], back: bool) -> None:
    """Move SERVICES to ADDRESS while everything runs, or say what would be lost.

    Services are content, snapshots.NAME, diff, images and tasks; several, with commas between them, move together.
    """
    if back == bool(address):
        raise InvalidArgument("expected an address or --back")
    to = None if back else place(address, settings)

    async def work(client: "Client") -> Sequence[str]:
        from carina.swap.client import RemoteSwapper

        return await RemoteSwapper(client.channel).swap(services.split(","), to)

    changes = target.run(work, deadline=None)
    for line in changes or ("nothing has changed",):
        click.echo(line)


@click.command("copy")
@click.option("--to", "address", required=True, metavar="ADDRESS", help="unix:///path of the other store.")
@set_option
@click.pass_obj
def content_copy(target: Target, address: str, settings: Sequence[str]) -> None:
    """Bring what another content store lacks of what is recorded, in any namespace."""
    to = place(address, settings)

    async def work(client: "Client") -> tuple[int, int]:
        from carina.client.copying import ContentCopy
        from carina.content.client import RemoteContentStore
        from carina.rpc.client import connect
        from carina.swap.client import RemoteSwapper

        blobs = moved = 0

        def count(size: int) -> None:
            nonlocal moved
            moved += size

        there = connect(to.address)
        here = None
        try:
            async for page in RemoteSwapper(client.channel).missing("content", to):
                here = here or connect(page.source.address)
                copy = ContentCopy(RemoteContentStore(here), page.source, RemoteContentStore(there), to, count)
                for blob in page.blobs:
                    await copy.copy(blob)
                    blobs += 1
        finally:
            there.close()
            if here is not None:
                here.close()
        return blobs, moved

    blobs, moved = target.run(work, deadline=None)
    click.echo(f"{blobs} blobs copied, {output.size(moved)}")


@click.command("copy")
@click.option("--to", "address", required=True, metavar="ADDRESS", help="unix:///path of the other snapshotter.")
@set_option
@click.pass_context
def snapshots_copy(ctx: click.Context, address: str, settings: Sequence[str]) -> None:
    """Bring the committed snapshots that another snapshotter lacks, of any namespace.

    Active snapshots and views are not copied: they stay where they are when the snapshotter is swapped.
    """
    target: Target = ctx.obj
    name, to = ctx.meta["snapshotter"], place(address, settings)

    async def work(client: "Client") -> tuple[int, int]:
        from carina.client.copying import SnapshotCopy
        from carina.diff.client import RemoteDiffer
        from carina.rpc.client import connect
        from carina.snapshots.client import RemoteSnapshotter
        from carina.swap.client import RemoteSwapper

        count = moved = 0
        there, here = connect(to.address), None
        try:
            async for page in RemoteSwapper(client.channel).missing(f"snapshots.{name}", to):
                here = here or connect(page.source.address)
                copy = SnapshotCopy(
                    RemoteSnapshotter(here, page.source.snapshotter or name),
                    page.source,
                    RemoteSnapshotter(there, to.snapshotter or name),
                    to,
                    differ=RemoteDiffer(client.channel),
                    content=client.content,
                )
                for snapshot in page.snapshots:
                    moved += await copy.copy(snapshot)
                    count += 1
        finally:
            there.close()
            if here is not None:
                here.close()
        return count, moved

    count, moved = target.run(work, deadline=None)
    click.echo(f"{count} snapshots copied, {output.size(moved)}")
