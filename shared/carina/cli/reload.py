"""reload: the configuration file read again by what runs."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from carina import config as configuration
from carina.cli.located import check, located
from carina.cli.target import Target

if TYPE_CHECKING:
    from carina.backends import Reloaded
    from carina.client import Client


@click.command()
@click.option(
    "--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="Configuration file, to be checked first."
)
@click.pass_obj
def reload(target: Target, file: Path | None) -> None:
    """Have the configuration file read again, and say what changed. Nothing is started again."""
    with located(file or configuration.DEFAULT_PATH):
        config = configuration.load(file.absolute() if file else None)
        check(config)

    async def work(client: "Client") -> "Reloaded":
        from carina.backends.client import RemoteBackendRegistry

        return await RemoteBackendRegistry(client.channel).reload()

    reloaded = target.run(work)
    for line in (*reloaded.changes, *reloaded.later):
        click.echo(line)
    if not reloaded.path:
        click.echo("there is no configuration file")
    elif not (reloaded.changes or reloaded.later):
        click.echo(f"nothing has changed in {reloaded.path}")
