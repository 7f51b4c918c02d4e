"""`contentd`: from the command line to the running service."""

import functools
from dataclasses import dataclass
from pathlib import Path

import click

from carina import config as constellation
from carina.aio.daemon import run
from carina.errors import CarinaError
from contentd import config as settings
from contentd.config import Config
from contentd.daemon import serve
from contentd.verify import damaged


@dataclass(frozen=True, slots=True)
class _Paths:
    config: Path | None
    root: Path | None
    state: Path | None

    def read(self) -> Config:
        try:
            return settings.read(constellation.load(self.config, root=self.root, state=self.state))
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
        run("contentd", functools.partial(serve, call.obj.read()))


@main.command()
@click.option("--quarantine", is_flag=True, help="Move damaged blobs to <root>/contentd/quarantine.")
@click.pass_obj
def verify(paths: _Paths, quarantine: bool) -> None:
    """Read and hash every blob again; print those that are damaged, and exit with 1 if there are any."""
    count = 0
    try:
        for found in damaged(paths.read().root, quarantine=quarantine):
            click.echo(f"{found.digest}\t{found.reason}")
            count += 1
    except CarinaError as error:
        raise click.ClickException(str(error)) from error
    if count:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
