"""Runs taskd."""

import functools
from pathlib import Path

import click

from carina.aio.daemon import run
from carina.config import load
from carina.errors import CarinaError
from taskd.config import from_constellation
from taskd.daemon import serve


@click.command()
@click.option("--config", "path", type=click.Path(path_type=Path), help="Configuration file.")
@click.option("--root", type=click.Path(path_type=Path), help="Directory of what survives a reboot.")
@click.option("--state", type=click.Path(path_type=Path), help="Directory of sockets and bundles.")
def main(path: Path | None, root: Path | None, state: Path | None) -> None:
    """The service of running containers."""
    try:
        start(path, root, state)
    except CarinaError as error:
        raise click.ClickException(str(error)) from error


def start(path: Path | None, root: Path | None, state: Path | None) -> None:
    """What `main` does, without a command line. Raises CarinaError where the configuration can't be."""
    loaded = load(path, root=root, state=state)
    run("taskd", functools.partial(serve, from_constellation(loaded)), logs=loaded.log)


if __name__ == "__main__":
    main()
