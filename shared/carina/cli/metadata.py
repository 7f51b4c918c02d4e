"""metadata: copies of the records, and ways back after their loss."""

import contextlib
import errno
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final

import click

from carina import config as configuration
from carina.cli.group import Group
from carina.cli.target import Target
from carina.config import Config, daemon, socket_path
from carina.errors import AlreadyExists, CarinaError, PermissionDenied, ResourceExhausted, Unavailable

if TYPE_CHECKING:
    from carina.client import Client

PATH: Final = click.Path(path_type=Path)
START_SECONDS: Final = 30.0


def _places(function: Any) -> Any:
    for decorator in (
        click.option("--state", type=PATH, metavar="DIR", help="Directory of sockets and bundles."),
        click.option("--root", type=PATH, metavar="DIR", help="Directory of everything that lasts."),
        click.option("--config", "file", type=PATH, metavar="FILE", help="Configuration file."),
    ):
        function = decorator(function)
    return function


@click.group(cls=Group)
def metadata() -> None:
    """Back the records up, and get them back."""


@metadata.command("backup")
@click.argument("target_file", metavar="FILE", type=PATH)
@click.pass_obj
def backup(target: Target, target_file: Path) -> None:
    """Write all records, as they are at one moment, to the new FILE, while everything is in use."""
    part = target_file.with_name(f".{target_file.name}.{os.urandom(4).hex()}")
    try:
        if target_file.exists():
            raise AlreadyExists(f"{target_file} is there already: it is not overwritten")
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            size = target.run(lambda client: _receive(client, file), deadline=None)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, target_file)
        _sync(target_file.parent)
    except FileExistsError as error:
        raise AlreadyExists(f"{target_file} is there already: it is not overwritten") from error
    except OSError as error:
        kind = ResourceExhausted if error.errno in (errno.ENOSPC, errno.EDQUOT) else Unavailable
        raise kind(f"{target_file} can't be written: {(error.strerror or str(error)).lower()}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    click.echo(f"{target_file}: {size} bytes")


async def _receive(client: "Client", file: BinaryIO) -> int:
    from carina.backup.client import RemoteBackup

    size = 0
    async for piece in RemoteBackup(client.channel).read():
        size += file.write(piece)
    return size


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@metadata.command("restore")
@click.argument("backup_file", metavar="FILE", type=PATH)
@_places
def restore(backup_file: Path, file: Path | None, root: Path | None, state: Path | None) -> None:
    """Put the backup FILE in the place of the database, while metadatad does not run; the database is kept."""
    config = _config("restore", file, root, state)
    _run(config, "metadatad", "restore", str(backup_file))


@metadata.command("rebuild")
@click.option("--namespace", default="default", show_default=True, help="For content whose namespace is not known.")
@click.option("--images", type=PATH, metavar="FILE", help="A list of images, as `carina images ls` prints it.")
@click.option("--salvage/--no-salvage", default=True, show_default=True, help="Keep what the old database still tells.")
@_places
def rebuild(
    namespace: str, images: Path | None, salvage: bool, file: Path | None, root: Path | None, state: Path | None
) -> None:
    """Make a new database from what the stores hold, while metadatad does not run; the old one is kept.

    All content and snapshots come back, in leases that keep them. Names of images, containers, labels and
    the namespaces of content come back as far as the old database can still be read.
    """
    config = _config("rebuild", file, root, state)
    options = ["--namespace", namespace, "--salvage" if salvage else "--no-salvage"]
    if images is not None:
        options += ["--images", str(images)]
    with _stores(config):
        _run(config, "metadatad", "rebuild", *options)


def _config(command: str, file: Path | None, root: Path | None, state: Path | None) -> Config:
    if os.geteuid() != 0:
        raise PermissionDenied(f"carina metadata {command} needs root: the database is root's")
    return configuration.load(file.absolute() if file else None, root=root, state=state)


def _command(config: Config, service: str) -> list[str]:
    places = ["--root", str(config.root), "--state", str(config.state)]
    return [sys.executable, "-m", service, *places, *(["--config", str(config.path)] if config.path else [])]


def _run(config: Config, service: str, *arguments: str) -> None:
    """The service's own command does it: nobody else opens its database."""
    status = subprocess.run([*_command(config, service), *arguments], check=False).returncode
    if status:
        raise click.exceptions.Exit(status if status > 0 else 1)


@contextlib.contextmanager
def _stores(config: Config) -> Iterator[None]:
    """The stores answer during the block: those that do not run are started for it."""
    started: list[tuple[str, subprocess.Popen[bytes]]] = []
    with tempfile.TemporaryFile() as log, contextlib.ExitStack() as stack:
        stack.callback(_end, started)
        try:
            for service, address in config.services.items():
                kind, _, name = service.partition(".")
                if kind in ("content", "snapshots") and service not in config.external and not _answers(address):
                    socket_path(address).parent.mkdir(mode=0o711, parents=True, exist_ok=True)
                    command = _command(config, daemon(service).partition("-")[0])
                    started.append((address, _started(command + (["--snapshotter", name] if name else []), log)))
        except OSError as error:
            raise CarinaError(f"a store can't be started: {error}") from error
        _await(started, log)
        yield


def _await(started: list[tuple[str, subprocess.Popen[bytes]]], log: IO[bytes]) -> None:
    limit = time.monotonic() + START_SECONDS
    for address, child in started:
        while not _answers(address) and child.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        if not _answers(address):
            log.seek(0)
            click.echo(log.read().decode(errors="replace"), err=True, nl=False)
            raise Unavailable(f"the store at {address} does not start")


def _end(started: list[tuple[str, subprocess.Popen[bytes]]]) -> None:
    for _, child in started:
        child.terminate()
    for _, child in started:
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _started(command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, start_new_session=True)


def _answers(address: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(socket_path(address)))
        except OSError:
            return False
    return True
