"""`metadatad`: from the command line to the running service."""

import asyncio
import functools
from collections.abc import Mapping
from pathlib import Path

import click

from carina import config as constellation
from carina.aio.daemon import run
from carina.errors import CarinaError
from carina.linux.privileges import kept_owner
from metadatad import config as settings
from metadatad.config import Config
from metadatad.daemon import serve
from metadatad.rebuild import rebuild as renew
from metadatad.restore import restore as put_back


@click.group(invoke_without_command=True)
@click.option("--config", "path", type=click.Path(path_type=Path), help="Configuration file.")
@click.option("--root", type=click.Path(path_type=Path), help="Directory of what survives a reboot.")
@click.option("--state", type=click.Path(path_type=Path), help="Directory of sockets.")
@click.pass_context
def main(call: click.Context, path: Path | None, root: Path | None, state: Path | None) -> None:
    """Serve the metadata: namespaces, leases, images, containers, sandboxes, content, snapshots and events."""
    try:
        call.obj = settings.read(constellation.load(path, root=root, state=state))
    except CarinaError as error:
        raise click.ClickException(str(error)) from error
    if call.invoked_subcommand is None:
        run("metadatad", functools.partial(serve, call.obj), logs=call.obj.constellation.log)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def restore(config: Config, file: Path) -> None:
    """Put the backup FILE in the place of the database, while no metadatad runs; the database is kept."""
    try:
        with kept_owner(config.root):
            done = put_back(config.database, file)
    except CarinaError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"restored {done.database} from {file}: " + _listed(done.records))
    if done.aside:
        click.echo(f"the database from before is {done.aside}")
    click.echo("what was made since the backup is no longer recorded: `carina check` lists it")


@main.command()
@click.option("--namespace", default="default", show_default=True, help="For content whose namespace is not known.")
@click.option("--images", type=click.Path(path_type=Path), help="A list of images, as `carina images ls` prints it.")
@click.option("--salvage/--no-salvage", default=True, show_default=True, help="Keep what the old database still tells.")
@click.pass_obj
def rebuild(config: Config, namespace: str, images: Path | None, salvage: bool) -> None:
    """Make a new database from what the stores hold, while no metadatad runs; the old one is kept."""
    work = functools.partial(renew, config, namespace=namespace, images=images, salvaging=salvage)
    try:
        with kept_owner(config.root):
            done = asyncio.run(work())
    except CarinaError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"rebuilt {config.database}")
    click.echo(f"salvaged from the old database: {_listed(done.salvaged) or 'nothing'}")
    click.echo(f"found in the stores: {_listed(done.found) or 'nothing else'}")
    for name, reason in done.left:
        click.echo(f"left alone: {name}: {reason}")
    if done.aside:
        click.echo(f"the database from before is {done.aside}")
    for name, lease in done.leases:
        click.echo(f"namespace {name}: the lease {lease} keeps what was found: remove it when nothing is missing")


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {noun}" for noun, count in counts.items() if count)


def start(path: Path | None, root: Path | None, state: Path | None) -> None:
    """What `main` does, without a command line. Raises CarinaError where the configuration can't be."""
    config = settings.read(constellation.load(path, root=root, state=state))
    run("metadatad", functools.partial(serve, config), logs=config.constellation.log)


if __name__ == "__main__":
    main()
