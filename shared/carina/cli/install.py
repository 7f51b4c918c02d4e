"""install: programs (and libraries) of an image, copied to where this machine finds them."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from carina.cli.complete import names
from carina.cli.target import Target
from carina.errors import AlreadyExists, FailedPrecondition
from carina.reference import normalize

if TYPE_CHECKING:
    from carina.client import Client

DIRECTORY: Final = Path("/opt/carina")


@click.command()
@click.argument("reference", shell_complete=names("images"))
@click.option("-l", "--libs", is_flag=True, help="Libraries of its lib directory as well.")
@click.option("-r", "--replace", is_flag=True, help="Replace files that are there.")
@click.option(
    "--path", type=click.Path(path_type=Path), default=DIRECTORY, show_default=True, help="Directory to install into."
)
@click.option("--snapshotter", envvar="CARINA_SNAPSHOTTER", default="overlayfs", show_default=True)
@click.pass_obj
def install(target: Target, reference: str, libs: bool, replace: bool, path: Path, snapshotter: str) -> None:
    """Install programs from an image on this machine.

    What is in the bin directory of the image goes into bin below --path.
    """
    wanted = ("bin", "lib") if libs else ("bin",)

    async def work(client: "Client") -> list[Path]:
        import asyncio

        from carina.client.imagemount import mount_image, unmount_image
        from carina.platforms import host

        image = await client.images.get(str(normalize(reference)))
        with tempfile.TemporaryDirectory(prefix="carina-install-") as name:
            mounted = Path(name)
            await mount_image(client, image, mounted, snapshotter=snapshotter, platform=host())
            try:
                return await asyncio.to_thread(copied, mounted, path, wanted, replace=replace)
            finally:
                await unmount_image(client, mounted, snapshotter=snapshotter, remove=True)

    for made in target.run(work, deadline=None):
        click.echo(made)


def copied(tree: Path, into: Path, directories: tuple[str, ...], *, replace: bool) -> list[Path]:
    """Copy the regular files of directories of a tree that is not trusted: no link of it is followed.

    Raises:
        AlreadyExists: a file is there, and is not to be replaced; nothing was copied.
        FailedPrecondition: the directory can't be written.
    """
    found = [
        (source, into / directory / source.name) for directory in directories for source in _files(tree / directory)
    ]
    if not replace:
        for _, place in found:
            if os.path.lexists(place):
                raise AlreadyExists(f"{place} is there already: --replace replaces it")
    try:
        for source, place in found:
            place.parent.mkdir(parents=True, exist_ok=True)
            _copy(source, place)
    except OSError as error:
        raise FailedPrecondition(f"{error.filename or into} can't be written: {error.strerror}") from error
    return [place for _, place in found]


def _files(directory: Path) -> Iterator[Path]:
    """Regular files; symbolic links on the way, and special files, are left out."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if directory.is_symlink():
            return
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            if entry.is_file(follow_symlinks=False):
                yield Path(entry.path)


def _copy(source: Path, place: Path) -> None:
    """A file that has its name only when it is whole."""
    part = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as old, part.open("wb") as new:
            shutil.copyfileobj(old, new)
            os.fchmod(new.fileno(), os.fstat(old.fileno()).st_mode & 0o777)
        part.rename(place)
    finally:
        part.unlink(missing_ok=True)
