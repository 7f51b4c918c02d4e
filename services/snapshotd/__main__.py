"""`snapshotd`: from the command line to the running service."""

import functools
from pathlib import Path

import click

from carina import config as constellation
from carina.aio.daemon import run
from carina.errors import CarinaError
from snapshotd import config as settings
from snapshotd.daemon import serve


@click.command()
@click.option("--config", "path", type=click.Path(path_type=Path), help="Configuration file.")
@click.option("--root", type=click.Path(path_type=Path), help="Directory of what survives a reboot.")
@click.option("--state", type=click.Path(path_type=Path), help="Directory of sockets.")
@click.option("--snapshotter", default="overlayfs", show_default=True, help="Which of the configured snapshotters.")
def main(path: Path | None, root: Path | None, state: Path | None, snapshotter: str) -> None:
    """Serve one snapshotter: overlayfs, native, or another name that the configuration gives a driver."""
    try:
        start(path, root, state, snapshotter)
    except CarinaError as error:
        raise click.ClickException(str(error)) from error


def start(path: Path | None, root: Path | None, state: Path | None, snapshotter: str) -> None:
    """What `main` does, without a command line. Raises CarinaError where the configuration can't be."""
    loaded = constellation.load(path, root=root, state=state)
    config = settings.read(loaded, snapshotter)
    run(f"snapshotd-{config.name}", functools.partial(serve, config), logs=loaded.log)


if __name__ == "__main__":
    main()
