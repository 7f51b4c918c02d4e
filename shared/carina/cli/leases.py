"""leases: what keeps objects from being collected for a while."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from carina.cli import listing, output
from carina.cli.complete import names
from carina.cli.group import Group
from carina.cli.parameters import Duration
from carina.cli.target import Target
from carina.leases import Lease

if TYPE_CHECKING:
    from carina.client import Client


@click.group(cls=Group)
def leases() -> None:
    """Manage leases."""


@leases.command("ls")
@listing.options
@click.argument("filters", nargs=-1)
@click.pass_obj
def list_(target: Target, form: listing.Form, filters: Sequence[str]) -> None:
    """List leases."""

    async def work(client: "Client") -> Sequence[Lease]:
        return await client.leases.list(filters)

    found = sorted(target.run(work), key=lambda lease: lease.id)
    rows = [listing.plain(lease) for lease in found]
    listing.show(form, rows, columns={"LEASE ID": "id", "CREATED AT": "created_at", "LABELS": "labels"}, name="id")


@leases.command("create")
@click.option("--id", default="", help="Id of the lease; made up where absent.")
@click.option(
    "-x",
    "--expires",
    type=Duration(unit=3600.0),
    default="24h",
    show_default=True,
    help="A duration, or a number of hours; 0 for never.",
)
@click.argument("labels", nargs=-1)
@click.pass_obj
def create(target: Target, id: str, expires: float, labels: Sequence[str]) -> None:
    """Create a lease and print its id."""
    import secrets
    from datetime import UTC, datetime, timedelta

    from carina.labels import GC_EXPIRE

    values = output.parse_labels(labels)
    if expires:
        values[GC_EXPIRE] = (datetime.now(UTC) + timedelta(seconds=expires)).strftime("%Y-%m-%dT%H:%M:%SZ")

    async def work(client: "Client") -> Lease:
        return await client.leases.create(Lease(id=id or secrets.token_hex(8), labels=values))

    click.echo(target.run(work).id)


@leases.command("rm")
@click.argument("ids", nargs=-1, required=True, shell_complete=names("leases"))
@click.option("--sync", is_flag=True, help="Return when the disk is clean of what they alone held.")
@click.pass_obj
def remove(target: Target, ids: Sequence[str], sync: bool) -> None:
    """Delete leases."""

    async def work(client: "Client") -> None:
        for position, id in enumerate(ids):
            await client.leases.delete(id, sync=sync and position == len(ids) - 1)
            click.echo(id)

    target.run(work, deadline=None)


@leases.command("resources")
@click.argument("id", shell_complete=names("leases"))
@listing.options
@click.pass_obj
def resources(target: Target, form: listing.Form, id: str) -> None:
    """List what a lease holds."""

    async def work(client: "Client") -> list[listing.Row]:
        return [listing.fields(resource) for resource in await client.leases.resources(id)]

    listing.show(form, target.run(work), columns={"TYPE": "type", "ID": "id"}, name="id")
