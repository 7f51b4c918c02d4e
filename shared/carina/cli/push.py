"""push: an image of the image store into a registry."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from carina.cli import output
from carina.cli.complete import names
from carina.cli.registry import Registry
from carina.cli.registry import options as registry_options
from carina.cli.target import Target
from carina.platforms import Platform
from carina.reference import normalize

if TYPE_CHECKING:
    from carina.client import Client


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of both commands that push."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print each step as a line of JSON."),
        click.option("-q", "--quiet", is_flag=True, help="Print the reference only."),
        click.option(
            "--platform", "platforms", multiple=True, help="OS/ARCH[/VARIANT]; all of the image where absent."
        ),
        registry_options,
    ):
        command = option(command)
    return command


@click.command()
@click.argument("image", shell_complete=names("images"))
@click.argument("reference", required=False)
@_options
@click.pass_obj
def push(
    target: Target,
    image: str,
    reference: str | None,
    registry: Registry,
    platforms: Sequence[str],
    quiet: bool,
    as_json: bool,
) -> None:
    """Push IMAGE into a registry: where its name says, or to REFERENCE."""
    _push(target, image, reference, registry=registry, platforms=platforms, quiet=quiet, as_json=as_json)


@click.command("push")
@click.argument("remote")
@click.argument("local", required=False, shell_complete=names("images"))
@_options
@click.pass_obj
def push_to(target: Target, /, remote: str, local: str | None, **options: Any) -> None:
    """Push the image LOCAL (or of the same name) to REMOTE: the order of `ctr images push`."""
    _push(target, local or remote, remote, **options)


def _push(
    target: Target,
    image: str,
    reference: str | None,
    *,
    registry: Registry,
    platforms: Sequence[str],
    quiet: bool,
    as_json: bool,
) -> None:
    from carina.cli.progress import Display
    from carina.transfer import Store

    name = str(normalize(image))
    where = str(normalize(reference)) if reference else name
    source = Store(name=name, platforms=tuple(Platform.parse(text) for text in platforms))
    display = Display(quiet=quiet, live=output.is_terminal(), as_json=as_json)
    started = time.monotonic()

    async def work(client: "Client") -> None:
        await client.transfer.push(source, where, access=access, on_progress=display.update)

    with registry.access(where) as access, display:
        target.run(work, deadline=None)
    if not as_json:
        click.echo(where if quiet else f"{where}: pushed in {time.monotonic() - started:.1f} s")
