"""version, info, deprecations: what the server says of itself."""

import sys
from typing import TYPE_CHECKING

import click

from carina.cli import listing, output
from carina.cli.group import Group
from carina.cli.target import Target

if TYPE_CHECKING:
    from carina.client import Client
    from carina.introspection import Server


@click.command()
@click.pass_obj
def version(target: Target) -> None:
    """Version of this tool and of the server."""
    from carina import __version__

    async def ask(client: "Client") -> str:
        from carina.rpc.health import probe

        return (await probe(client.channel))[1]

    click.echo(f"Client:\n  Version:  {__version__}\n  Python:   {sys.version.split()[0]}")
    click.echo(f"Server:\n  Version:  {target.run(ask)}")


@click.command()
@click.pass_obj
def info(target: Target) -> None:
    """Show what the server says of itself."""
    output.as_json({"server": listing.plain(target.run(_server))})


@click.group(cls=Group)
def deprecations() -> None:
    """What the server says is going to be removed."""


@deprecations.command("ls")
@listing.options
@click.pass_obj
def list_(target: Target, form: listing.Form) -> None:
    """List what is in use and is going to be removed."""
    rows = [listing.fields(warning) for warning in target.run(_server).deprecations]
    columns: dict[str, listing.Column] = {"ID": "id", "LAST OCCURRENCE": "last_occurrence", "MESSAGE": "message"}
    listing.show(form, rows, columns=columns, name="id")


async def _server(client: "Client") -> "Server":
    from carina.introspection.client import RemoteIntrospection

    return await RemoteIntrospection(client.channel).server()
