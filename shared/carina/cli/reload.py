"""reload: the configuration file read again by what runs."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from carina import config as configuration
from carina.cli.constellation import PATH
from carina.cli.target import Target
from carina.config import Config, daemon

if TYPE_CHECKING:
    from carina.backends import Reloaded
    from carina.client import Client


@click.command()
@click.option("--config", "file", type=PATH, metavar="FILE", help="Configuration file, to be checked first.")
@click.pass_obj
def reload(target: Target, file: Path | None) -> None:
    """Have the configuration file read again, and say what changed. Nothing is started again."""
    config = configuration.load(file.absolute() if file else None)
    _check(config)

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


def _check(config: Config) -> None:
    """Have every service read its section, as it would at its start.

    Raises:
        InvalidArgument: one of them could not be started with this file.
    """
    for service in config.services:
        name, _, snapshotter = daemon(service).partition("-")
        read = importlib.import_module(f"{name}.config").read
        read(config, snapshotter) if snapshotter else read(config)
