"""push: an image of the image store into a registry."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from carina.cli import output
from carina.cli.target import Target
from carina.platforms import Platform
from carina.reference import normalize

if TYPE_CHECKING:
    from carina.client import Client


@click.command()
@click.argument("image")
@click.argument("reference", required=False)
@click.option("--platform", "platforms", multiple=True, help="OS/ARCH[/VARIANT]; all of the image where absent.")
@click.option("--plain-http", is_flag=True, help="Speak http to the registry.")
@click.option("-u", "--user", metavar="NAME[:PASSWORD]", help="Who asks; without a password one is asked for.")
@click.option("-q", "--quiet", is_flag=True, help="Print the reference only.")
@click.option("--json", "as_json", is_flag=True, help="Print each step as a line of JSON.")
@click.pass_obj
def push(
    target: Target,
    image: str,
    reference: str | None,
    platforms: Sequence[str],
    plain_http: bool,
    user: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Push IMAGE into a registry: where its name says, or to REFERENCE."""
    from carina.cli.progress import Display
    from carina.cli.registry import access
    from carina.transfer import Store

    name = str(normalize(image))
    where = str(normalize(reference)) if reference else name
    source = Store(name=name, platforms=tuple(Platform.parse(text) for text in platforms))
    registry = access(plain_http=plain_http, user=user)
    display = Display(quiet=quiet, live=output.is_terminal(), as_json=as_json)
    started = time.monotonic()

    async def work(client: "Client") -> None:
        await client.transfer.push(source, where, access=registry, on_progress=display.update)

    with display:
        target.run(work, deadline=None)
    if not as_json:
        click.echo(where if quiet else f"{where}: pushed in {time.monotonic() - started:.1f} s")
