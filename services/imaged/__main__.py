"""`imaged`: from the command line to the running service."""

import functools
from pathlib import Path

import click

from carina import config as constellation
from carina.aio.daemon import run
from carina.errors import CarinaError
from imaged.config import Config
from imaged.daemon import serve


@click.command()
@click.option("--config", "path", type=click.Path(path_type=Path), help="Configuration file.")
@click.option("--root", type=click.Path(path_type=Path), help="Directory of what survives a reboot.")
@click.option("--state", type=click.Path(path_type=Path), help="Directory of sockets.")
def main(path: Path | None, root: Path | None, state: Path | None) -> None:
    """Serve image operations: transfers between registries, archives and the image store, and layers."""
    try:
        start(path, root, state)
    except CarinaError as error:
        raise click.ClickException(str(error)) from error


def start(path: Path | None, root: Path | None, state: Path | None) -> None:
    """What `main` does, without a command line. Raises CarinaError where the configuration can't be."""
    loaded = constellation.load(path, root=root, state=state)
    run("imaged", functools.partial(serve, Config.of(loaded)), logs=loaded.log)


if __name__ == "__main__":
    main()
