"""`gatewayd`: from the command line to the running service."""

import functools
from pathlib import Path

import click

from carina import config as constellation
from carina.aio.daemon import run
from carina.errors import CarinaError
from gatewayd import config as settings
from gatewayd.daemon import serve


@click.command()
@click.option("--config", "path", type=click.Path(path_type=Path), help="Configuration file.")
@click.option("--root", type=click.Path(path_type=Path), help="Directory of what survives a reboot.")
@click.option("--state", type=click.Path(path_type=Path), help="Directory of sockets.")
@click.option("--group", help="Group, by name or number, whose members may connect.")
def main(path: Path | None, root: Path | None, state: Path | None, group: str | None) -> None:
    """Serve the whole of containerd's API on one socket."""
    try:
        start(path, root, state, group)
    except CarinaError as error:
        raise click.ClickException(str(error)) from error


def start(path: Path | None, root: Path | None, state: Path | None, group: str | None = None) -> None:
    """What `main` does, without a command line. Raises CarinaError where the configuration can't be."""
    loaded = constellation.load(path, root=root, state=state)
    run("gatewayd", functools.partial(serve, settings.read(loaded, group=group)), logs=loaded.log)


if __name__ == "__main__":
    main()
