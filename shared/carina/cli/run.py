"""run: a container from an image."""

import contextlib
from typing import TYPE_CHECKING, Any, Final

import click

from carina.cli import lean, process, wishes
from carina.cli.complete import names
from carina.cli.target import Target
from carina.errors import CarinaError
from carina.reference import normalize

if TYPE_CHECKING:
    from pathlib import Path

    from carina.client import Client
    from carina.client.run import Wish
    from carina.containers import Container


LATER: Final = (
    "carina.namespaces.client",
    "carina.leases.client",
    "carina.content.client",
    "carina.rpc.lane",
    "carina.snapshots.client",
    "carina.containers.client",
    "carina.client.stdio",
    "carina.tasks.client",
)
"""What is needed after the first answers, in that order."""


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("reference", shell_complete=names("images"))
@click.argument("id", required=False)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--rm", is_flag=True, help="Remove container and snapshot when it ends.")
@click.option("-d", "--detach", is_flag=True, help="Return when it runs.")
@process.options
@wishes.options
@click.pass_obj
def run(
    target: Target, /, reference: str, id: str | None, rm: bool, detach: bool, io: process.Io, **options: Any
) -> None:
    """Run COMMAND (or what the image says) in a new container ID.

    With --config alone the container needs no image: `run --config FILE ID`.
    """
    tty = bool(options["tty"])
    if detach and (tty or rm):
        raise click.UsageError("-d goes with neither -t nor --rm: nobody would hold the terminal, or see the end")
    if tty:
        process.need_terminal()
    source, wish = wanted(reference, id, **options)

    async def work(client: "Client") -> int:
        with lean.ahead(LATER):
            return await ran(client)

    async def ran(client: "Client") -> int:
        async with process.Signals() as signals:
            container = await made(client, source, wish)
            try:
                if detach:
                    return await process.start_detached(client, container, signals=signals, io=io)
                status = await process.attached(client, container, tty=tty, signals=signals, io=io)
            except BaseException:
                await _discard(client, container)
                raise
            if rm:
                from carina.client.run import remove

                await remove(client, container)
            return status

    raise click.exceptions.Exit(target.run(work, deadline=None))


def wanted(reference: str, id: str | None, *, rootfs: bool, **options: Any) -> "tuple[str | Path | None, Wish]":
    """What a container stands on (an image's name, a directory, or nothing), and what is wanted of it."""
    if id is None:
        if options["spec_file"] is None:
            raise click.UsageError("ID is missing: the name of the new container, after the image")
        return None, wishes.wish(reference, **options)
    source = _directory(reference) if rootfs else str(normalize(reference))
    return source, wishes.wish(id, **options)


async def made(client: "Client", source: "str | Path | None", wish: "Wish") -> "Container":
    """The container on an image, on a directory, or on what its specification says."""
    from carina.client.run import create, create_on

    if isinstance(source, str):
        return await create(client, await client.images.get(source), wish)
    return await create_on(client, source, wish)


def _directory(text: str) -> "Path":
    from pathlib import Path

    path = Path(text)
    if not path.is_dir():
        raise click.UsageError(f"--rootfs: {text} is not a directory")
    return path.absolute()


async def _discard(client: "Client", container: "Container") -> None:
    from carina.client.run import remove

    with contextlib.suppress(CarinaError):
        await remove(client, container)
