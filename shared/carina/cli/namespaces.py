"""namespaces: the namespaces of a constellation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from carina.cli import complete, listing, output
from carina.cli.group import Group
from carina.cli.target import Target
from carina.namespaces import Namespace

if TYPE_CHECKING:
    from carina.client import Client


@click.group(cls=Group, aliases={"c": "create"})
def namespaces() -> None:
    """Manage namespaces."""


@namespaces.command("ls")
@listing.options
@click.pass_obj
def list_(target: Target, form: listing.Form) -> None:
    """List namespaces."""

    async def work(client: "Client") -> Sequence[Namespace]:
        return await client.namespaces.list()

    found = sorted(target.run(work), key=lambda namespace: namespace.name)
    rows = [{"name": n.name, "labels": dict(n.labels)} for n in found]
    listing.show(form, rows, columns={"NAME": "name", "LABELS": _labels}, name="name")


def _labels(row: listing.Row) -> str:
    return output.labels(row["labels"]) if row["labels"] else " "


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
@click.argument("name", shell_complete=complete.names("namespaces"))
@click.argument("labels", nargs=-1, required=True)
@click.pass_obj
def label(target: Target, name: str, labels: Sequence[str]) -> None:
    """Set labels, KEY=VALUE; an empty value removes one."""
    values = output.parse_labels(labels)

    async def work(client: "Client") -> Namespace:
        return await client.namespaces.update(Namespace(name=name, labels=values), [f"labels.{key}" for key in values])

    click.echo(output.labels(target.run(work).labels))


@namespaces.command("rm")
@click.argument("names", nargs=-1, required=True, shell_complete=complete.names("namespaces"))
@click.option("-c", "--cgroup", is_flag=True, help="Remove its control group as well.")
@click.pass_obj
def remove(target: Target, names: Sequence[str], cgroup: bool) -> None:
    """Remove empty namespaces."""

    async def work(client: "Client") -> None:
        for name in names:
            await client.namespaces.delete(name)
            if cgroup:
                _remove_cgroup(name)
            click.echo(name)

    target.run(work)


def _remove_cgroup(name: str) -> None:
    """Remove the control group that the namespace's containers had theirs in, in whatever hierarchies there are.

    Raises:
        FailedPrecondition: it is in use.
    """
    from pathlib import Path

    from carina.errors import FailedPrecondition

    for directory in (Path("/sys/fs/cgroup") / name, *Path("/sys/fs/cgroup").glob(f"*/{name}")):
        try:
            directory.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise FailedPrecondition(f"control group {directory} can't be removed: {error.strerror}") from error
