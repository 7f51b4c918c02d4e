"""pull: an image from a registry into the image store, unpacked."""

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
@click.argument("reference")
@click.option("--snapshotter", envvar="CARINA_SNAPSHOTTER", default="overlayfs", show_default=True)
@click.option("--platform", "platforms", multiple=True, help="OS/ARCH[/VARIANT]; this machine's where absent.")
@click.option("--all-platforms", is_flag=True, help="Fetch every platform of the image; unpack this machine's.")
@click.option("--plain-http", is_flag=True, help="Speak http to the registry.")
@click.option("--no-unpack", is_flag=True, help="Fetch only.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label of the image record.")
@click.option("-u", "--user", metavar="NAME[:PASSWORD]", help="Who asks; without a password one is asked for.")
@click.option("-q", "--quiet", is_flag=True, help="Print the image's name only.")
@click.option("--json", "as_json", is_flag=True, help="Print each step as a line of JSON.")
@click.pass_obj
def pull(
    target: Target,
    reference: str,
    snapshotter: str,
    platforms: Sequence[str],
    all_platforms: bool,
    plain_http: bool,
    no_unpack: bool,
    labels: Sequence[str],
    user: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Pull an image from a registry and unpack it."""
    from carina import platforms as platform
    from carina.cli.progress import Display
    from carina.cli.registry import access
    from carina.transfer import Store, Unpack

    name = str(normalize(reference))
    wanted = [] if all_platforms else [Platform.parse(text) for text in platforms] or [platform.host()]
    unpacked = [] if no_unpack or target.embedded else wanted or [platform.host()]
    into = Store(
        name=name,
        labels=output.parse_labels(labels),
        platforms=tuple(wanted),
        unpacks=tuple(Unpack(platform=one, snapshotter=snapshotter) for one in unpacked),
    )
    registry = access(plain_http=plain_http, user=user)
    display = Display(quiet=quiet, live=output.is_terminal(), as_json=as_json)
    started = time.monotonic()

    async def work(client: "Client") -> None:
        await client.transfer.fetch(name, into, access=registry, on_progress=display.update)

    with display:
        target.run(work, deadline=None)
    if not as_json:
        click.echo(name if quiet else f"{name}: pulled in {time.monotonic() - started:.1f} s")
