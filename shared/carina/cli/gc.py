"""gc: garbage collection on demand."""

from typing import TYPE_CHECKING

import click

from carina.cli import output
from carina.cli.target import Target

if TYPE_CHECKING:
    from carina.client import Client
    from carina.gc import Collection


@click.group()
def gc() -> None:
    """Collect what nothing refers to any more."""


@gc.command("run")
@click.option("--sync", is_flag=True, help="Return when the disk is clean.")
@click.pass_obj
def run(target: Target, sync: bool) -> None:
    """Run the collector now and say what it removed."""

    async def work(client: "Client") -> "Collection":
        from carina.gc.client import RemoteCollector

        return await RemoteCollector(client.channel).run(sync=sync)

    done = target.run(work, deadline=None)
    click.echo(f"done in {done.seconds * 1000:.1f} ms, with the database locked for {done.lock_seconds * 1000:.1f} ms")
    if not done.removed:
        click.echo("there was nothing to remove")
        return
    output.table(
        ("TYPE", "OBJECTS", "SIZE"),
        [(r.type, r.objects, output.size(r.bytes) if r.bytes else "-") for r in done.removed],
    )
