"""import and export: images out of archives, and into them."""

import contextlib
import os
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from carina.cli import output
from carina.cli.complete import names
from carina.cli.target import Target
from carina.platforms import Platform, host
from carina.reference import normalize

if TYPE_CHECKING:
    from carina.client import Client
    from carina.transfer import ExtraReference

PIECE: Final = 1 << 20


@click.command("import")
@click.argument("path", type=click.Path())
@click.option("--base-name", metavar="NAME", help="Name before the tags in the archive; import-<date> where absent.")
@click.option("--index-name", metavar="NAME", help="Name for the whole archive as one image.")
@click.option("--digests", is_flag=True, help="Name images also, or where they have no name, by their digests.")
@click.option("--skip-digest-for-named", is_flag=True, help="With --digests: not those that have a name.")
@click.option("--platform", "platforms", multiple=True, help="OS/ARCH[/VARIANT]; this machine's where absent.")
@click.option("--all-platforms", is_flag=True, help="Import every platform; unpack this machine's.")
@click.option("--no-unpack", is_flag=True, help="Import only.")
@click.option("--snapshotter", envvar="CARINA_SNAPSHOTTER", default="overlayfs", show_default=True)
@click.option("--compress-blobs", is_flag=True, help="Compress layers that `docker save` left uncompressed.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label of the image records.")
@click.option("-q", "--quiet", is_flag=True, help="Print the images' names only.")
@click.option("--json", "as_json", is_flag=True, help="Print each step as a line of JSON.")
@click.pass_obj
def import_(
    target: Target,
    path: str,
    base_name: str | None,
    index_name: str | None,
    digests: bool,
    skip_digest_for_named: bool,
    platforms: Sequence[str],
    all_platforms: bool,
    no_unpack: bool,
    snapshotter: str,
    compress_blobs: bool,
    labels: Sequence[str],
    quiet: bool,
    as_json: bool,
) -> None:
    """Import images from PATH: an archive, a directory with an OCI layout, or - for the standard input."""
    from carina.cli.progress import Display
    from carina.transfer import Progress, Store, Unpack

    wanted = [] if all_platforms else [Platform.parse(text) for text in platforms] or [host()]
    into = Store(
        name=str(normalize(index_name)) if index_name else "",
        labels=output.parse_labels(labels),
        platforms=tuple(wanted),
        extra_references=(_prefix(base_name, digests=digests, skip_named=skip_digest_for_named),),
        unpacks=()
        if no_unpack or target.embedded
        else tuple(Unpack(platform=one, snapshotter=snapshotter) for one in wanted or [host()]),
    )
    display = Display(quiet=quiet, live=output.is_terminal(), as_json=as_json)
    saved: list[str] = []

    def on_progress(progress: Progress) -> None:
        display.update(progress)
        if progress.event == "saved":
            saved.append(progress.name)

    async def work(client: "Client") -> None:
        with _source(path) as pieces:
            archive = _each(pieces)
            await client.transfer.load(archive, into, compress=compress_blobs, on_progress=on_progress)

    with display:
        target.run(work, deadline=None)
    if not as_json:
        output.names(saved)


def _prefix(base_name: str | None, *, digests: bool, skip_named: bool) -> "ExtraReference":
    """The rule by which images are named, as `ctr` has it: without a name of one's own, the archive's names hold."""
    from carina.transfer import ExtraReference

    return ExtraReference(
        name=base_name or f"import-{datetime.now(UTC).date().isoformat()}",
        is_prefix=True,
        allow_overwrite=not base_name,
        add_digest=digests,
        skip_named_digest=skip_named,
    )


@click.command("export")
@click.argument("path", type=click.Path())
@click.argument("images", nargs=-1, required=True, shell_complete=names("images"))
@click.option("--platform", "platforms", multiple=True, help="OS/ARCH[/VARIANT]; this machine's where absent.")
@click.option("--all-platforms", is_flag=True, help="Export every platform whose content is here.")
@click.option("--skip-manifest-json", is_flag=True, help="Leave out what only `docker load` needs.")
@click.option("--skip-non-distributable", is_flag=True, help="Leave out layers that may not be redistributed.")
@click.pass_obj
def export(
    target: Target,
    path: str,
    images: Sequence[str],
    platforms: Sequence[str],
    all_platforms: bool,
    skip_manifest_json: bool,
    skip_non_distributable: bool,
) -> None:
    """Export IMAGES as an OCI layout in a tar archive at PATH, - for the standard output."""
    from carina.transfer import ExtraReference, Store

    names = [str(normalize(image)) for image in images]
    source = Store(name=names[0], extra_references=tuple(ExtraReference(name=name) for name in names[1:]))
    wanted = [] if all_platforms else [Platform.parse(text) for text in platforms] or [host()]
    started = time.monotonic()

    async def work(client: "Client") -> None:
        saved = client.transfer.save(
            source, platforms=wanted, docker=not skip_manifest_json, foreign=not skip_non_distributable
        )
        with _sink(path) as file:
            async with contextlib.aclosing(saved) as chunks:
                async for chunk in chunks:
                    file.write(chunk)

    target.run(work, deadline=None)
    if path != "-":
        click.echo(f"{path}: {output.size(os.path.getsize(path))} in {time.monotonic() - started:.1f} s")


@contextlib.contextmanager
def _sink(path: str) -> Iterator[BinaryIO]:
    """A file that has its name only when it is complete."""
    if path == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    partial = Path(f"{path}.partial-{os.getpid()}")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        raise click.ClickException(f"{path} can't be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _source(path: str) -> Iterator[Iterator[bytes]]:
    try:
        if path == "-":
            yield _read(sys.stdin.buffer)
        elif Path(path).is_dir():
            if not (Path(path) / "index.json").is_file():
                raise click.ClickException(f"{path} is not an OCI image layout: it has no index.json")
            yield _layout(Path(path))
        else:
            with Path(path).open("rb") as file:
                yield _read(file)
    except OSError as error:
        raise click.ClickException(f"{error.filename or path} can't be read: {error.strerror}") from error


async def _each(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _read(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(PIECE):
        yield piece


def _layout(directory: Path) -> Iterator[bytes]:
    """The files of an OCI image layout as a tar archive."""
    found = [directory / "oci-layout", directory / "index.json", *sorted(directory.glob("blobs/*/*"))]
    for path in found:
        if not path.is_file():
            continue
        info = tarfile.TarInfo(str(path.relative_to(directory)))
        with path.open("rb") as file:
            info.size = os.fstat(file.fileno()).st_size
            yield info.tobuf(tarfile.PAX_FORMAT)
            yield from _read(file)
        yield bytes(-info.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)
