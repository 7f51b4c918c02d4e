"""leases: what keeps objects from being collected for a while."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from carina.cli import output
from carina.cli.target import Target
from carina.leases import Lease

if TYPE_CHECKING:
    from carina.client import Client


@click.group()
def leases() -> None:
    """Manage leases."""


@leases.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@click.argument("filters", nargs=-1)
@click.pass_obj
def list_(target: Target, quiet: bool, filters: Sequence[str]) -> None:
    """List leases."""

    async def work(client: "Client") -> Sequence[Lease]:
        return await client.leases.list(filters)

    found = sorted(target.run(work), key=lambda lease: lease.id)
    if quiet:
        output.names(lease.id for lease in found)
        return
    rows = [(lease.id, lease.created_at or "-", output.labels(lease.labels)) for lease in found]
    output.table(("LEASE ID", "CREATED AT", "LABELS"), rows)


@leases.command("create")
@click.option("--id", default="", help="Id of the lease; made up where absent.")
@click.option("-x", "--expires", type=float, default=24.0, show_default=True, help="Hours; 0 for never.")
@click.argument("labels", nargs=-1)
@click.pass_obj
def create(target: Target, id: str, expires: float, labels: Sequence[str]) -> None:
    """Create a lease and print its id."""
    import secrets
    from datetime import UTC, datetime, timedelta

    from carina.labels import GC_EXPIRE

    values = output.parse_labels(labels)
    if expires:
        values[GC_EXPIRE] = (datetime.now(UTC) + timedelta(hours=expires)).strftime("%Y-%m-%dT%H:%M:%SZ")

    async def work(client: "Client") -> Lease:
        return await client.leases.create(Lease(id=id or secrets.token_hex(8), labels=values))

    click.echo(target.run(work).id)


@leases.command("rm")
@click.argument("ids", nargs=-1, required=True)
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
@click.argument("id")
@click.pass_obj
def resources(target: Target, id: str) -> None:
    """List what a lease holds."""

    async def work(client: "Client") -> list[tuple[str, str]]:
        return [(resource.type, resource.id) for resource in await client.leases.resources(id)]

    output.table(("TYPE", "ID"), target.run(work))
