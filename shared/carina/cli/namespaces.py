"""namespaces: the namespaces of a constellation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from carina.cli import output
from carina.cli.target import Target
from carina.namespaces import Namespace

if TYPE_CHECKING:
    from carina.client import Client


@click.group()
def namespaces() -> None:
    """Manage namespaces."""


@namespaces.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
@click.pass_obj
def list_(target: Target, quiet: bool) -> None:
    """List namespaces."""

    async def work(client: "Client") -> Sequence[Namespace]:
        return await client.namespaces.list()

    found = sorted(target.run(work), key=lambda namespace: namespace.name)
    if quiet:
        output.names(namespace.name for namespace in found)
        return
    output.table(("NAME", "LABELS"), [(n.name, output.labels(n.labels) if n.labels else "") for n in found])


@namespaces.command("create")
@click.argument("name")
@click.argument("labels", nargs=-1)
@click.pass_obj
def create(target: Target, name: str, labels: Sequence[str]) -> None:
    """Create a namespace."""
    values = output.parse_labels(labels)

    async def work(client: "Client") -> None:
        await client.namespaces.create(Namespace(name=name, labels=values))

    target.run(work)
    click.echo(name)


@namespaces.command("label")
@click.argument("name")
@click.argument("labels", nargs=-1, required=True)
@click.pass_obj
def label(target: Target, name: str, labels: Sequence[str]) -> None:
    """Set labels, KEY=VALUE; an empty value removes one."""
    values = output.parse_labels(labels)

    async def work(client: "Client") -> Namespace:
        return await client.namespaces.update(Namespace(name=name, labels=values), [f"labels.{key}" for key in values])

    click.echo(output.labels(target.run(work).labels))


@namespaces.command("rm")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def remove(target: Target, names: Sequence[str]) -> None:
    """Remove empty namespaces."""

    async def work(client: "Client") -> None:
        for name in names:
            await client.namespaces.delete(name)
            click.echo(name)

    target.run(work)
