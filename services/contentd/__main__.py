"""`contentd`: from the command line to the running service."""

import functools
from dataclasses import dataclass
from pathlib import Path

import click

from carina import config as constellation
from carina.aio.daemon import run
from carina.errors import CarinaError
from carina.log import Settings as Logs
from contentd import config as settings
from contentd.config import Config
from contentd.daemon import serve
from contentd.verify import Pace, damaged, unlimited


@dataclass(frozen=True, slots=True)
class _Paths:
    config: Path | None
    root: Path | None
    state: Path | None

    def read(self) -> tuple[Config, Logs]:
        try:
            loaded = constellation.load(self.config, root=self.root, state=self.state)
            return settings.read(loaded), loaded.log
        except CarinaError as error:
            raise click.ClickException(str(error)) from error


@click.group(invoke_without_command=True)
@click.option("--config", "path", type=click.Path(path_type=Path), help="Configuration file.")
@click.option("--root", type=click.Path(path_type=Path), help="Directory of what survives a reboot.")
@click.option("--state", type=click.Path(path_type=Path), help="Directory of sockets.")
@click.pass_context
def main(call: click.Context, path: Path | None, root: Path | None, state: Path | None) -> None:
    """Serve blobs and ingests."""
    call.obj = _Paths(path, root, state)
    if call.invoked_subcommand is None:
        config, logs = call.obj.read()
        run("contentd", functools.partial(serve, config), logs=logs)


@main.command()
@click.option("--quarantine", is_flag=True, help="Move damaged blobs to <root>/contentd/quarantine.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0),
    default=100.0,
    show_default=True,
    metavar="MIB",
    help="MiB to read in a second at the most; 0: no limit.",
)
@click.pass_obj
def verify(paths: _Paths, quarantine: bool, rate: float) -> None:
    """Read and hash every blob again; print those that are damaged.

    Exit status: 0 all are sound, 1 some are damaged, 3 the store can't be read.
    """
    count = 0
    try:
        for found in damaged(
            paths.read()[0].root, quarantine=quarantine, paced=Pace(rate * 2**20) if rate else unlimited
        ):
            click.echo(f"{found.digest}\t{found.reason}")
            count += 1
    except (CarinaError, OSError) as error:
        click.echo(f"contentd verify: {error}", err=True)
        raise SystemExit(3) from error
    if count:
        raise SystemExit(1)


def start(path: Path | None, root: Path | None, state: Path | None) -> None:
    """What `main` does, without a command line. Raises CarinaError where the configuration can't be."""
    loaded = constellation.load(path, root=root, state=state)
    run("contentd", functools.partial(serve, settings.read(loaded)), logs=loaded.log)


if __name__ == "__main__":
    main()
