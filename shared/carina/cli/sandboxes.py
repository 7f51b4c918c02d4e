"""sandboxes: groups of containers that share a shim."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from carina.cli import listing
from carina.cli.group import Group
from carina.cli.target import Target

if TYPE_CHECKING:
    from carina.client import Client


@click.group(cls=Group)
def sandboxes() -> None:
    """Manage sandboxes."""


@sandboxes.command("ls")
@listing.options
@click.argument("filters", nargs=-1)
@click.pass_obj
def list_(target: Target, form: listing.Form, filters: Sequence[str]) -> None:
    """List sandboxes."""

    async def work(client: "Client") -> list[listing.Row]:
        from carina.sandboxes.client import RemoteSandboxStore

        found = await RemoteSandboxStore(client.channel).list(filters)
        return [
            listing.fields(one) | {"runtime": one.runtime.name if one.runtime else ""}
            for one in sorted(found, key=lambda one: one.id)
        ]

    columns: dict[str, listing.Column] = {
        "ID": "id",
        "CREATED": "created_at",
        "SANDBOXER": "sandboxer",
        "RUNTIME": "runtime",
        "LABELS": "labels",
    }
    listing.show(form, target.run(work), columns=columns, name="id")


@sandboxes.command("rm")
@click.argument("ids", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Remove the record even where its controller fails.")
@click.pass_obj
def remove(target: Target, ids: Sequence[str], force: bool) -> None:
    """Stop sandboxes and remove them."""

    async def work(client: "Client") -> None:
        from carina.errors import CarinaError, NotFound
        from carina.sandboxes.client import RemoteSandboxController, RemoteSandboxStore

        store = RemoteSandboxStore(client.channel)
        for id in ids:
            record = await store.get(id)
            try:
                controller = RemoteSandboxController(client.channel, record.sandboxer)
                await controller.stop(id, seconds=10)
                await controller.shutdown(id)
            except NotFound:
                pass  # it does not run
            except CarinaError:
                if not force:
                    raise
            await store.delete(id)
            click.echo(id)

    target.run(work)
